// How a problem is split for a GPU, and the shared-memory layout of the adjoint scan.
#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "cuda_launch.h"

namespace vmddpm {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

[[noreturn]] void throw_too_large(int64_t bytes, const GpuLimits& limits) {
  throw std::invalid_argument("the scan needs " + std::to_string(bytes) + " bytes of shared memory a block, and this GPU has " +
                              std::to_string(limits.shared_bytes) + ": use backend='reference'");
}

// The share of a scheduler's issue slots that these kernels use with so many warps: an estimate, the same as in
// benchmarks/gpu/assumptions.py.
double issue_efficiency(double warps) {
  constexpr double points[][2] = {{0, 0}, {1, 0.27}, {2, 0.45}, {3, 0.57}, {4, 0.65}, {6, 0.74}, {8, 0.78}, {16, 0.85}};
  for (size_t i = 1; i < std::size(points); ++i) {
    const auto [x0, y0] = points[i - 1];
    const auto [x1, y1] = points[i];
    if (warps <= x1) return y0 + (y1 - y0) * (warps - x0) / (x1 - x0);
  }
  return points[std::size(points) - 1][1];
}

// Cycles that a multiprocessor needs for its share of `blocks` blocks of equal length, `resident` at a time.
double cycles(int64_t blocks, double warps, int64_t resident, double instructions_per_warp, int64_t multiprocessors) {
  constexpr double kSchedulers = 4;
  if (multiprocessors == 0) return static_cast<double>(blocks) * warps * instructions_per_warp;  // fills any GPU
  int64_t left = ceil_div(blocks, multiprocessors);
  const auto rounds = [&](int64_t at_once) {
    const double on_scheduler = std::max(1.0, static_cast<double>(at_once) * warps / kSchedulers);
    return on_scheduler * instructions_per_warp / issue_efficiency(on_scheduler);
  };
  return static_cast<double>(left / resident) * rounds(resident) + (left % resident ? rounds(left % resident) : 0);
}

// Cycles of the launches: negligible, so zero, if `multiprocessors` is 0 and the work is assumed to fill any GPU.
double launch_cycles(int64_t launches, const GpuLimits& limits) {
  constexpr double kLaunch = 4500;
  return limits.multiprocessors > 0 ? kLaunch * static_cast<double>(launches) : 0;
}

// A way to split a problem, its predicted cycles, and the numbers that its workspaces hold.
struct Cut {
  GpuScanPlan plan;
  double time;
  int64_t numbers;
};

// The plan with the least memory among those predicted to be at most 5% slower than the fastest.
GpuScanPlan chosen(const std::vector<Cut>& cuts) {
  constexpr double kHardly = 1.05;
  const auto faster = [](const Cut& a, const Cut& b) { return a.time < b.time; };
  const double most = kHardly * std::min_element(cuts.begin(), cuts.end(), faster)->time;
  const Cut* best = nullptr;
  for (const Cut& cut : cuts) {
    if (cut.time > most) continue;
    if (!best || cut.numbers < best->numbers || (cut.numbers == best->numbers && cut.time < best->time)) best = &cut;
  }
  return best->plan;
}

// The fewest images that fill half of the block slots of the GPU.
int64_t least_images(int64_t resident, const GpuLimits& limits, int64_t blocks_of_image) {
  return ceil_div(resident * limits.multiprocessors, 2 * std::max<int64_t>(1, blocks_of_image));
}

// Adds the plan and, with partial sums and one segment, its variants that walk the batch in parts of at least `least`
// images. walk(images): the predicted cycles of a part, which takes `launches` launches.
template <typename Walk>
void add_parts(std::vector<Cut>& cuts, GpuScanPlan plan, const ScanParams& p, const GpuLimits& limits,
               int64_t numbers_of_image, int launches, int64_t least, Walk walk) {
  constexpr int64_t kMostParts = 64;
  const int64_t most = numbers_of_image > 0 && plan.segments == 1 ? std::min(p.batch, kMostParts) : 1;
  for (int64_t parts = 1; parts <= std::max<int64_t>(1, most); ++parts) {
    plan.part = std::max<int64_t>(1, ceil_div(p.batch, parts));
    if (parts > 1 && plan.part < least) break;
    const int64_t whole = p.batch / plan.part, rest = p.batch % plan.part;
    double time = static_cast<double>(whole) * walk(plan.part) + (rest ? walk(rest) : 0);
    time += launch_cycles((whole + (rest > 0)) * launches, limits);
    cuts.push_back({plan, time, plan.part * numbers_of_image});
  }
}

// A way to divide the states of a channel, and the instructions of a warp (BUDGET.md) per step and per state of a step.
struct ForwardKernel {
  int states, slices;
  int least_tiles, most_tiles;  // warps of channels in a block
  int warps;                    // per multiprocessor, as registers allow
  double step, state;
  bool carries;                 // has the carry walk that several segments need
};

GpuScanPlan forward_plan(const ScanParams& p, const GpuLimits& limits) {
  constexpr ForwardKernel kOne{1, 1, 2, 4, 32, 52, 8, true}, kFour{4, 1, 2, 4, 24, 48, 6, true};
  constexpr ForwardKernel kSixteen{16, 1, 3, 4, 16, 48, 6, false}, kSplit{4, 4, 1, 2, 24, 26, 6, true};
  constexpr ForwardKernel kDouble{1, 4, 1, 2, 8, 60, 60, true};
  constexpr double kBlock = 400;  // instructions of a warp
  std::vector<ForwardKernel> kernels;
  if (p.wide) {
    kernels = {kDouble};
  } else if (p.states == 1) {
    kernels = {kOne};
  } else if (p.states <= 4) {
    kernels = {kFour};
  } else {
    kernels = {kSixteen, kSplit};
  }

  std::vector<Cut> cuts;
  int64_t needed = INT64_MAX;
  const int64_t columns = ceil_div(p.channels, gpu::kWarp), chunks = ceil_div(p.length, kGpuChunk);
  for (const ForwardKernel& kernel : kernels) {
    for (int tiles = kernel.most_tiles; tiles >= kernel.least_tiles; --tiles) {
      GpuScanPlan plan{};
      plan.states_per_thread = kernel.states;
      plan.slices = kernel.slices;
      plan.tiles = tiles;
      plan.passes = ceil_div(p.states, kernel.states * kernel.slices);
      plan.groups = ceil_div(columns, tiles);
      plan.chunk = kGpuChunk;
      plan.chunks = chunks;
      plan.walks = p.routes;
      plan.meet = p.sum_routes && p.routes > 1 && plan.passes == 1;
      plan.images = plan.meet ? ceil_div(p.routes, 2) : plan.passes == 1 ? 0 : p.sum_routes ? p.routes : 1;
      constexpr int64_t kOfSystem = 1024;  // bytes reserved per block; shared_bytes is net of one block's
      const int warps = tiles * kernel.slices;
      const int64_t bytes = gpu::forward_shared_bytes(plan, p.wide);
      needed = std::min(needed, bytes);
      if (bytes > limits.shared_bytes) continue;
      const int64_t fit = (limits.shared_bytes + kOfSystem) / (bytes + kOfSystem);
      const int64_t resident = std::max<int64_t>(1, std::min<int64_t>(kernel.warps / warps, fit));
      const int64_t of_blocks = std::max<int64_t>(1, plan.groups) * tiles;
      for (int64_t wanted = 1; wanted <= std::max<int64_t>(1, chunks); wanted += (wanted + 1) / 2) {
        plan.segment = std::max<int64_t>(1, ceil_div(chunks, wanted)) * kGpuChunk;
        plan.segments = std::max<int64_t>(1, ceil_div(p.length, plan.segment));
        const int64_t blocks = p.routes * plan.groups * plan.segments;  // per image
        const double steps = static_cast<double>(std::min(p.length, plan.segment));
        const double walk = kBlock + steps * (kernel.step + kernel.state * kernel.states);
        // Warps beyond the last channel do not walk.
        const double walking = warps * static_cast<double>(columns) / static_cast<double>(of_blocks);
        const int64_t numbers = plan.images * p.length * p.channels * (p.sum_routes ? 1 : p.routes);
        const int64_t least = least_images(resident, limits, blocks);
        add_parts(cuts, plan, p, limits, numbers, plan.meet ? 3 : 2, least, [&](int64_t images) {
          const double time = cycles(images * blocks, walking, resident, walk, limits.multiprocessors);
          return static_cast<double>(plan.passes) * (plan.segments > 1 ? 1.75 * time + launch_cycles(2, limits) : time);
        });
        if (!kernel.carries || p.batch * blocks * warps >= 16 * limits.multiprocessors) break;
      }
    }
  }
  if (cuts.empty()) throw_too_large(needed, limits);
  return chosen(cuts);
}

// The same for the adjoint scan, with blocks of half-warp units and two channels per lane. `cell`: instructions of a
// warp per step of its channels, divided among their slices; `state`: per state of a step.
struct BackwardKernel {
  int states, most_slices, least_tiles, most_tiles;
  int warps;
  double cell, state;
};

GpuScanPlan backward_plan(const ScanParams& p, const GpuLimits& limits) {
  constexpr BackwardKernel kAlone{1, 1, 2, 8, 16, 0, 121}, kShared{2, gpu::kMostUnits, 1, 4, 16, 180, 23};
  constexpr BackwardKernel kDouble{1, gpu::kMostUnits, 1, 2, 8, 1000, 300};
  constexpr double kBlock = 700;  // instructions of a warp
  const bool alone = p.states == 1, summed = p.sum_routes && p.routes > 1;
  BackwardKernel kernel = alone ? kAlone : p.wide ? kDouble : kShared;
  if (p.wide || p.zoh) kernel.warps = 8;  // they take twice the registers
  if (p.zoh && !alone) kernel.most_tiles = 2;

  std::vector<Cut> cuts;
  int64_t needed = INT64_MAX;
  const int64_t columns = std::max<int64_t>(1, ceil_div(p.channels, gpu::kWarp)), chunks = ceil_div(p.length, kGpuChunk);
  for (int slices = kernel.most_slices; slices >= 1 && cuts.empty(); slices /= 2) {
    // No more slices than states need; fewer only if shared memory is short.
    if (slices > 1 && kernel.states * slices / 2 >= p.states) continue;
    for (int tiles = kernel.most_tiles; tiles >= kernel.least_tiles; --tiles) {
      if (tiles * slices % 2) continue;  // half a warp
      GpuScanPlan plan{};
      plan.states_per_thread = kernel.states;
      plan.slices = slices;
      plan.tiles = tiles;
      plan.passes = ceil_div(p.states, kernel.states * slices);
      plan.groups = ceil_div(columns, tiles);
      plan.matrices = ceil_div(plan.groups, 2);
      plan.chunk = kGpuChunk;
      plan.chunks = chunks;
      const int warps = tiles * slices / 2;
      const int64_t bytes = gpu::chunk_layout(plan, p).bytes;
      needed = std::min(needed, bytes);
      if (bytes > limits.shared_bytes) continue;
      constexpr int64_t kOfSystem = 1024;  // bytes reserved per block; shared_bytes is net of one block's
      const int64_t resident =
          std::max<int64_t>(1, std::min<int64_t>(kernel.warps / warps, (limits.shared_bytes + kOfSystem) / (bytes + kOfSystem)));
      const double step = 2 * (kernel.cell / slices + kernel.state * kernel.states);
      for (int64_t wanted = 1; wanted <= std::max<int64_t>(1, chunks); wanted += (wanted + 1) / 2) {
        plan.segment = std::max<int64_t>(1, ceil_div(chunks, wanted)) * kGpuChunk;
        plan.segments = std::max<int64_t>(1, ceil_div(p.length, plan.segment));
        // A segment covers different pixels in each route, so with several segments no block sums routes.
        for (plan.walks = summed && plan.segments == 1 ? 1 : p.routes; plan.walks <= p.routes; ++plan.walks) {
          plan.meet = summed && plan.walks == p.routes && plan.passes == 1;
          plan.images = plan.meet ? ceil_div(p.routes, 2) : summed ? plan.walks : plan.passes > 1 ? 1 : 0;
          const int64_t routes = ceil_div(p.routes, plan.walks);
          const int64_t blocks = plan.walks * plan.groups * plan.segments;  // per image
          const double steps = static_cast<double>(std::min(p.length, plan.segment));
          const double walk = static_cast<double>(routes) * (kBlock + steps * step);
          const int64_t matrices = p.wide && plan.groups == 1 ? 0 : 2 * plan.matrices * p.routes * p.length * p.states;
          const int64_t numbers = plan.images * p.length * p.channels * (p.sum_routes ? 1 : p.routes) + matrices;
          const int64_t least = least_images(resident, limits, blocks);
          const int launches = plan.meet || plan.groups > 1 ? 3 : 2;
          add_parts(cuts, plan, p, limits, numbers, launches, least, [&](int64_t part) {
            const double time = cycles(part * blocks, warps, resident, walk, limits.multiprocessors);
            return static_cast<double>(plan.passes) *
                   (plan.segments > 1 ? (alone ? 1.5 : 1.25) * time + launch_cycles(2, limits) : time);
          });
        }
        if (p.batch * p.routes * plan.groups * plan.segments * warps >= 16 * limits.multiprocessors) break;
      }
    }
  }
  if (cuts.empty()) throw_too_large(needed, limits);
  return chosen(cuts);
}

}  // namespace

// How threads divide the work. In the forward scan all routes, images, segments and groups of channels are blocks of
// one launch. The plan varies the split of a channel's states, the warps of channels per block, the segments of a
// sequence and the parts of the batch, and takes the least memory among the plans close to the least predicted time.
// The adjoint scan is planned the same way; its blocks may also walk summed routes one after another.
GpuScanPlan cuda_scan_plan(const ScanParams& p, const GpuLimits& limits, bool backward) {
  GpuScanPlan plan = backward ? backward_plan(p, limits) : forward_plan(p, limits);
  if (p.channels == 0) plan.groups = plan.matrices = 0;  // no blocks
  return plan;
}

namespace gpu {

ChunkLayout chunk_layout(const GpuScanPlan& plan, const ScanParams& p) {
  const int32_t accumulate = p.wide ? 8 : 4, states = plan.states_per_thread * plan.slices;
  const int32_t threads = kUnit * plan.slices * plan.tiles, sub = sub_steps(plan.states_per_thread, p.wide, p.zoh);
  const bool alone = p.states == 1;
  ChunkLayout s{};
  const auto reserve = [&s](int32_t bytes) {
    const int32_t at = s.bytes;
    s.bytes += (bytes + 15) / 16 * 16;
    return at;
  };
  s.work = reserve(sizeof(BlockWork));
  s.pixels = reserve(2 * kChunk * 4);
  s.matrices = reserve(kMatrixPitch * 2 * states * accumulate);
  if (alone) {
    s.drive = reserve(kChunk * 2 * threads * accumulate);
    s.history = reserve(kChunk / alone_steps(p.wide, p.zoh) * 2 * threads * accumulate);
    s.sums = reserve(threads / kWarp * 2 * kChunk * accumulate);
  } else {
    s.drive = reserve(plan.tiles * kTilePairs * 4 * accumulate);
    s.dy = reserve(plan.tiles * kTilePairs * 2 * accumulate);
    s.history = reserve((kChunk / sub - 1) * 2 * plan.states_per_thread * threads * accumulate);
    s.partial = reserve(kStrip * 4 * threads * accumulate);
    s.sums = reserve(plan.tiles * 2 * kStrip * states * accumulate);
    s.totals = reserve(4 * threads * accumulate);
  }
  s.bias = reserve(kWarp * plan.tiles * accumulate);
  s.skip = reserve(kWarp * plan.tiles * accumulate);
  return s;
}

}  // namespace gpu
}  // namespace vmddpm
