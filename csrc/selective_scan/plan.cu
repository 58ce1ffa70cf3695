// How a problem is cut for a GPU, and what follows from that alone: shared memory and the kernels' arguments.
#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "cuda_launch.h"

namespace vmddpm {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int power_of_two_from(int64_t n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Of a block, if no input is half precision.
int64_t shared_bytes(const GpuScanPlan& plan, const ScanParams& p, bool backward) {
  gpu::ScanArguments a{};
  for (gpu::Input* in : {&a.x, &a.delta, &a.B, &a.C, &a.dy}) in->log2_size = p.wide ? 3 : 2;
  return gpu::shared_layout(a, plan, p, backward).bytes;
}

[[noreturn]] void throw_too_large(int64_t bytes, const GpuLimits& limits) {
  throw std::invalid_argument("the scan needs " + std::to_string(bytes) + " bytes of shared memory a block, and this GPU has " +
                              std::to_string(limits.shared_bytes) + ": use backend='reference'");
}

// A GPU is full from about 8 warps a multiprocessor on, and it is filled, in this order, with what costs least:
//
//   S, the states of a thread    4, as it holds the states of 16 / S steps in registers
//   slices                       the other states of a channel, in other warps of the block: at most 4
//   passes                       what 4 slices do not reach is done by launches one after another
//   segments                     pieces of a sequence side by side, each with a walk before it that finds what enters it
//   tiles                        more channels to a block share B and C, and the partial sums of their gradients, in
//                                memory, as long as every multiprocessor still has a block
GpuScanPlan backward_plan(const ScanParams& p, const GpuLimits& limits) {
  constexpr bool backward = true;
  constexpr int64_t kWarpsToFill = 8;
  const int64_t machine = limits.multiprocessors * kWarpsToFill;
  GpuScanPlan plan{};
  const int64_t warps = p.batch * (p.sum_routes ? 1 : p.routes) * ceil_div(p.channels, gpu::kWarp);

  if (p.wide || p.states <= 2) {
    plan.states_per_thread = 1;
  } else {
    plan.states_per_thread = 4;
  }
  plan.slices = std::min(gpu::kMostSlices, power_of_two_from(ceil_div(p.states, plan.states_per_thread)));

  constexpr double segment_cost = 1.2;
  plan.chunk = kGpuChunk;
  plan.chunks = ceil_div(p.length, kGpuChunk);
  plan.segment = std::max<int64_t>(1, plan.chunks) * kGpuChunk;
  const int64_t in_flight = std::max<int64_t>(1, warps * plan.slices);
  if (static_cast<double>(in_flight) * segment_cost <= static_cast<double>(machine) && plan.chunks > 1) {
    // Routes that are summed run one after another where segments run side by side.
    const int64_t wanted = std::min(plan.chunks, ceil_div(machine, in_flight));
    plan.segment = ceil_div(plan.chunks, wanted) * kGpuChunk;
  }
  plan.segments = std::max<int64_t>(1, ceil_div(p.length, plan.segment));
  plan.loops_routes = p.sum_routes && plan.segments == 1;

  plan.tiles = std::min(gpu::kBackwardThreads / (gpu::kWarp * plan.slices), 2);
  const int64_t columns = ceil_div(p.channels, gpu::kWarp);
  // No more than a tenth of the warps without channels.
  while (plan.tiles > 1 && 10 * (ceil_div(columns, plan.tiles) * plan.tiles - columns) > columns) plan.tiles /= 2;
  while (plan.tiles > 1 && (warps * plan.segments < limits.multiprocessors * plan.tiles ||
                            shared_bytes(plan, p, backward) > limits.shared_bytes)) {
    plan.tiles /= 2;
  }
  while (plan.slices > 1 && shared_bytes(plan, p, backward) > limits.shared_bytes) plan.slices /= 2;
  const int64_t bytes = shared_bytes(plan, p, backward);
  if (bytes > limits.shared_bytes) throw_too_large(bytes, limits);
  plan.passes = ceil_div(p.states, plan.states_per_thread * plan.slices);
  plan.groups = ceil_div(p.channels, gpu::kWarp * plan.tiles);
  return plan;
}

// The share of a scheduler's issue slots that code like this uses with so many warps to choose among: an estimate, the same
// as that of benchmarks/gpu/assumptions.py.
double issue_efficiency(double warps) {
  constexpr double points[][2] = {{0, 0}, {1, 0.27}, {2, 0.45}, {3, 0.57}, {4, 0.65}, {6, 0.74}, {8, 0.78}, {16, 0.85}};
  for (size_t i = 1; i < std::size(points); ++i) {
    const auto [x0, y0] = points[i - 1];
    const auto [x1, y1] = points[i];
    if (warps <= x1) return y0 + (y1 - y0) * (warps - x0) / (x1 - x0);
  }
  return points[std::size(points) - 1][1];
}

// Cycles that a multiprocessor needs for its share of so many blocks of equal length, `resident` of them at a time.
double cycles(int64_t blocks, double warps, int64_t resident, double instructions_per_warp, int64_t multiprocessors) {
  constexpr double kSchedulers = 4;
  if (multiprocessors == 0) return static_cast<double>(blocks) * warps * instructions_per_warp;  // more than fill any GPU
  int64_t left = ceil_div(blocks, multiprocessors);
  const auto rounds = [&](int64_t at_once) {
    const double on_scheduler = std::max(1.0, static_cast<double>(at_once) * warps / kSchedulers);
    return on_scheduler * instructions_per_warp / issue_efficiency(on_scheduler);
  };
  return static_cast<double>(left / resident) * rounds(resident) + (left % resident ? rounds(left % resident) : 0);
}

// A way to share out the states of a channel, and what a warp executes (BUDGET.md): for a step, and for a state of it.
struct ForwardKernel {
  int states, slices;
  int least_tiles, most_tiles;  // warps of channels in a block
  int warps;                    // of a multiprocessor, as registers allow
  double step, state;
  bool carries;                 // segments can be walked ahead
};

GpuScanPlan forward_plan(const ScanParams& p, const GpuLimits& limits) {
  constexpr ForwardKernel kOne{1, 1, 2, 4, 32, 52, 8, true}, kFour{4, 1, 2, 4, 24, 48, 6, true};
  constexpr ForwardKernel kSixteen{16, 1, 3, 4, 16, 48, 6, false}, kSplit{4, 4, 1, 2, 24, 26, 6, true};
  constexpr ForwardKernel kDouble{1, 4, 1, 2, 8, 60, 60, true};
  constexpr double kLaunch = 4500, kBlock = 400;  // cycles, and instructions of a warp
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

  GpuScanPlan best{};
  double least = 0;
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
      plan.images = (p.sum_routes && p.routes > 1) || plan.passes > 1 ? (p.sum_routes ? p.routes : 1) : 0;
      constexpr int64_t kOfSystem = 1024;  // bytes of each block's, and of a multiprocessor beside a block's most
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
        const int64_t blocks = p.batch * p.routes * plan.groups * plan.segments;
        const double steps = static_cast<double>(std::min(p.length, plan.segment));
        const double walk = kBlock + steps * (kernel.step + kernel.state * kernel.states);
        // Warps beyond the last channel do not walk.
        const double walking = warps * static_cast<double>(columns) / static_cast<double>(of_blocks);
        double time = cycles(blocks, walking, resident, walk, limits.multiprocessors);
        if (plan.segments > 1) time += 0.75 * time + 2 * kLaunch;
        time *= static_cast<double>(plan.passes);
        if (best.slices == 0 || time < least) {
          least = time;
          best = plan;
        }
        if (!kernel.carries || blocks * warps >= 16 * limits.multiprocessors) break;
      }
    }
  }
  if (best.slices == 0) throw_too_large(needed, limits);
  return best;
}

}  // namespace

// Which threads do what. All routes, images, segments and groups of channels are blocks of one launch of the forward scan:
// what is predicted to take the least time is chosen among the ways to share out the states of a channel, the warps of
// channels in a block and the pieces of a sequence that are walked side by side.
GpuScanPlan cuda_scan_plan(const ScanParams& p, const GpuLimits& limits, bool backward) {
  return backward ? backward_plan(p, limits) : forward_plan(p, limits);
}

namespace gpu {

SharedLayout shared_layout(const ScanArguments& a, const GpuScanPlan& plan, const ScanParams& p, bool backward) {
  const int32_t width = kWarp * plan.tiles, states = plan.states_per_thread * plan.slices;
  const int32_t accumulate = p.wide ? 8 : 4, tile = plan.tiles * kTileSize * accumulate;
  const int32_t matrix = kSteps * kMostSlices * plan.states_per_thread * accumulate;
  SharedLayout s{};
  int32_t used = 0;
  const auto take = [&used](int32_t bytes) {
    const int32_t at = used;
    used += (bytes + 15) / 16 * 16;
    return at;
  };
  const auto raw = [&](const Input& in, int32_t columns) { return take((kSteps * columns) << in.log2_size); };
  s.raw_x = raw(a.x, width);
  s.raw_delta = raw(a.delta, width);
  s.raw_B = raw(a.B, states);
  s.raw_C = raw(a.C, states);
  s.raw_dy = backward ? raw(a.dy, width) : 0;
  s.stage_bytes = used;
  used = 0;
  s.raw = take(kStages * s.stage_bytes);
  s.work = take(sizeof(Work));
  s.pixels = take(kPixelRing * kSteps * 4);
  s.x = take(tile);
  s.delta = take(tile);
  s.B = take(matrix);
  s.C = take(matrix);
  s.bias = take(width * accumulate);
  s.skip = take(width * accumulate);
  s.partial = take(plan.slices * tile * (backward ? 2 : 1));
  if (backward) {
    s.dy = take(tile);
    s.matrices = take(plan.tiles * 2 * matrix);
    const int32_t kept = static_cast<int32_t>(kGpuChunk) / sub_steps(plan.states_per_thread, p.wide, p.zoh);
    s.history = take(kept * plan.states_per_thread * block_threads(plan) * accumulate);
  }
  s.bytes = used;
  return s;
}

ScanArguments scan_arguments(const ScanParams& p, const GpuScanPlan& plan, const GpuScanWork& work) {
  ScanArguments a{};
  a.batch = p.batch;
  a.routes = p.routes;
  a.length = p.length;
  a.channels = p.channels;
  a.states = p.states;
  a.groups = plan.groups;
  a.segments = plan.segments;
  a.segment = plan.segment;
  a.chunks = plan.chunks;
  a.log2_slices = log2_of(plan.slices);
  a.log2_tiles = log2_of(plan.tiles);
  a.loops_routes = plan.loops_routes;
  a.softplus = p.softplus;
  const int width = kWarp * plan.tiles, states = plan.states_per_thread * plan.slices;
  const bool has_table = p.table != nullptr;
  const int64_t wide[4] = {p.batch, p.routes, p.length, p.channels}, matrix[4] = {p.batch, p.routes, p.length, p.states};
  a.x = make_input(p.x, wide, width, has_table);
  a.delta = make_input(p.delta, wide, width, has_table);
  a.B = make_input(p.B, matrix, states, has_table);
  a.C = make_input(p.C, matrix, states, has_table);
  a.A = p.A;
  a.D = p.D;
  a.delta_bias = p.delta_bias;
  a.table = p.table;
  a.start = p.initial_state;
  a.segment_state = work.segment_state;
  a.segment_delta = work.segment_delta;
  const int64_t out[4] = {p.batch, p.sum_routes ? 1 : p.routes, p.length, p.channels};
  a.y = make_output(p.y, out);
  a.last_state = p.last_state;
  a.checkpoints = p.checkpoints;
  return a;
}

}  // namespace gpu
}  // namespace vmddpm
