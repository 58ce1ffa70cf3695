// From a problem and its plan to launches.
#pragma once
#include "cuda_block.h"

namespace vmddpm {
namespace gpu {

constexpr int kBackwardThreads = 256;  // at most, of a block
constexpr int kCombineThreads = 128;
constexpr int kFoldThreads = 256;
constexpr int kFoldPieces = 2;         // of a thread

VMDDPM_CONSTANT int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

inline int block_threads(const GpuScanPlan& plan) { return kWarp * plan.slices * plan.tiles; }

inline int64_t block_count(const ScanArguments& a) {
  return a.batch * (a.loops_routes ? 1 : a.route_end - a.route_begin) * a.segments * a.groups;
}

// Everything but the gradients, for the whole problem; for_each_launch narrows it down.
ScanArguments scan_arguments(const ScanParams& p, const GpuScanPlan& plan, const GpuScanWork& work);

// Where things lie in a block's shared memory, for the inputs that `a` has.
SharedLayout shared_layout(const ScanArguments& a, const GpuScanPlan& plan, const ScanParams& p, bool backward);

// Calls run(arguments) once for each launch: pass after pass over the states, and route after route where results of
// several routes add up and a block does not walk them itself. The order of the launches is the order of the sums.
template <typename Run>
void for_each_launch(ScanArguments a, const ScanParams& p, const GpuScanPlan& plan, bool adds_up, Run run) {
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    a.first_state = pass * plan.states_per_thread * plan.slices;
    const bool apart = adds_up && p.sum_routes && !plan.loops_routes;
    a.loops_routes = adds_up && plan.loops_routes;
    for (int64_t route = 0; route < (apart ? p.routes : 1); ++route) {
      a.route_begin = apart ? route : 0;
      a.route_end = apart ? route + 1 : p.routes;
      a.add = pass > 0 || route > 0;
      run(a);
    }
  }
}

// Of a block of the forward scan.
int forward_shared_bytes(const GpuScanPlan& plan, bool wide);

// Turns what each segment adds into what enters it: `first`, (B, K, D, N) or null, enters the first segment, or the last one
// when `reverse`.
void combine(const ScanParams& p, const GpuScanPlan& plan, void* segment_state, const void* segment_delta, const void* first,
             bool reverse, void* stream);

// out[i] = images[0][i] + images[1][i] + ..., in this order, rounded once, for i < count: `images` is Acc (parts, count),
// Acc double if out is.
void fold(const void* images, int64_t parts, int64_t count, void* out, DType out_dtype, void* stream);

// What enters each segment from behind it, to a.segment_state: the gradient of the state after its last step.
void adjoint_carries(ScanArguments a, const ScanParams& p, const GpuScanPlan& plan, const void* dlast_state, void* stream);

}  // namespace gpu
}  // namespace vmddpm
