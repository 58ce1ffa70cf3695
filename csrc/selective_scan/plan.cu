// How a problem is cut for a GPU, and what follows from that alone: shared memory and the kernels' arguments.
#include <algorithm>
#include <string>

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
  return backward ? gpu::chunk_layout(plan, p).bytes : gpu::shared_layout(a, plan, p, false).bytes;
}

}  // namespace

// Which threads do what. One warp of 32 channels of one sequence is the least work there can be; a GPU is full from
// about 8 warps a multiprocessor on, and it is filled, in this order, with what costs least:
//
//   S, the states of a thread    16 (6.3 instructions a step and state in the forward walk) where warps of channels
//                                alone fill the machine, else 4 (7.9), which makes up to four times as many warps;
//                                the backward always 4, as it holds the states of 16 / S steps in registers
//   slices                       the other states of a channel, in other warps of the block: at most 4
//   passes                       what 4 slices do not reach is done by launches one after another
//   segments                     pieces of a sequence side by side, each with a walk before it that finds what enters it:
//                                1.6 times the work of a forward scan, 1.2 of a backward one, so only where it fills
//                                more of the machine than that
//   tiles                        more channels to a block share B and C (backward: and the partial sums of their
//                                gradients, in memory), as long as every multiprocessor still has a block
//
// With 132 multiprocessors this gives, for N = 16 (warps: in one launch):
//
//                                          forward                              backward
//   B   K            D      L       S   slices  segments  tiles  warps   slices  segments  tiles  warps
//   1   1            96     65,536  4   4       86        1      1,032   4       86        1      1,032
//   16  4, summed    192    1,024   4   4       3         1      1,152   4       3         2      1,152
//   16  4, summed    1,536  16      4   4       1         1      3,072   4       1         2      3,072
//   64  1            3,072  16      16  1       1         4      6,144   4       1         2      24,576
GpuScanPlan cuda_scan_plan(const ScanParams& p, const GpuLimits& limits, bool backward) {
  constexpr int64_t kWarpsToFill = 8;
  const int64_t machine = limits.multiprocessors * kWarpsToFill;
  GpuScanPlan plan{};
  const int64_t warps = p.batch * (p.sum_routes ? 1 : p.routes) * ceil_div(p.channels, gpu::kWarp);

  if (backward) {
    plan.states_per_thread = p.wide || p.states == 1 ? 1 : 2;
  } else if (p.wide || p.states <= 2) {
    plan.states_per_thread = 1;
  } else if (!backward && p.states > 8 && warps * ceil_div(p.states, 16) >= machine) {
    plan.states_per_thread = 16;
  } else {
    plan.states_per_thread = 4;
  }
  plan.slices = std::min(backward ? gpu::kMostUnits : gpu::kMostSlices, power_of_two_from(ceil_div(p.states, plan.states_per_thread)));

  const double segment_cost = backward ? 1.2 : 1.6;
  plan.chunk = kGpuChunk;
  plan.chunks = ceil_div(p.length, kGpuChunk);
  plan.segment = std::max<int64_t>(1, plan.chunks) * kGpuChunk;
  const int64_t in_flight = std::max<int64_t>(1, warps * plan.slices / (backward ? 2 : 1));
  if (static_cast<double>(in_flight) * segment_cost <= static_cast<double>(machine) && plan.chunks > 1) {
    // Routes that are summed run one after another where segments run side by side.
    const int64_t wanted = std::min(plan.chunks, ceil_div(machine, in_flight));
    plan.segment = ceil_div(plan.chunks, wanted) * kGpuChunk;
  }
  plan.segments = std::max<int64_t>(1, ceil_div(p.length, plan.segment));
  if (plan.segments > 1 && !backward && plan.states_per_thread == 16) plan.states_per_thread = 4;
  plan.loops_routes = p.sum_routes && plan.segments == 1;

  const int most_tiles = backward ? gpu::kBackwardThreads / (gpu::kUnit * plan.slices) : 4 / plan.slices;
  const int least_tiles = backward && plan.slices == 1 ? 2 : 1;  // a block is a warp at least
  plan.tiles = std::min(most_tiles, backward ? 2 : 4);
  const int64_t columns = ceil_div(p.channels, gpu::kWarp);
  // No more than a tenth of the warps without channels.
  while (plan.tiles > least_tiles && 10 * (ceil_div(columns, plan.tiles) * plan.tiles - columns) > columns) plan.tiles /= 2;
  while (plan.tiles > least_tiles && (warps * plan.segments < limits.multiprocessors * plan.tiles ||
                            shared_bytes(plan, p, backward) > limits.shared_bytes)) {
    plan.tiles /= 2;
  }
  while (plan.slices > 1 && shared_bytes(plan, p, backward) > limits.shared_bytes) plan.slices /= 2;
  const int64_t bytes = shared_bytes(plan, p, backward);
  if (bytes > limits.shared_bytes) {
    throw std::invalid_argument("the scan needs " + std::to_string(bytes) + " bytes of shared memory a block, and this GPU has " +
                                std::to_string(limits.shared_bytes) + ": use backend='reference'");
  }
  plan.passes = ceil_div(p.states, plan.states_per_thread * plan.slices);
  plan.groups = ceil_div(p.channels, gpu::kWarp * plan.tiles);
  return plan;
}

namespace gpu {

ChunkLayout chunk_layout(const GpuScanPlan& plan, const ScanParams& p) {
  const int32_t accumulate = p.wide ? 8 : 4, states = plan.states_per_thread * plan.slices;
  const int32_t threads = kUnit * plan.slices * plan.tiles, sub = sub_steps(plan.states_per_thread, p.wide, p.zoh);
  const bool alone = states == 1;  // each thread has all there is of its channels
  ChunkLayout s{};
  const auto take = [&s](int32_t bytes) {
    const int32_t at = s.bytes;
    s.bytes += (bytes + 15) / 16 * 16;
    return at;
  };
  s.strip = alone ? kChunk : 8;
  s.work = take(sizeof(Work));
  s.bases = take(sizeof(Bases));
  s.pixels = take(2 * kChunk * 4);
  s.matrices = take(kMatrixPitch * 2 * states * accumulate);
  if (alone) {
    s.drive = take(kChunk * 2 * threads * accumulate);
    s.history = take(kChunk / alone_steps(p.wide, p.zoh) * 2 * threads * accumulate);
    s.sums = take(threads / kWarp * 2 * kChunk * accumulate);
  } else {
    s.drive = take(plan.tiles * kTilePairs * 4 * accumulate);
    s.dy = take(plan.tiles * kTilePairs * 2 * accumulate);
    s.history = take((kChunk / sub - 1) * 2 * plan.states_per_thread * threads * accumulate);
    s.partial = take(s.strip * 4 * threads * accumulate);
    s.sums = take(plan.tiles * 2 * s.strip * states * accumulate);
  }
  s.bias = take(kWarp * plan.tiles * accumulate);
  s.skip = take(kWarp * plan.tiles * accumulate);
  return s;
}

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
