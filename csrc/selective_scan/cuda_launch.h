// Declarations that turn a problem and its plan into launches.
#pragma once
#include <vector>

#include "cuda_work.h"

namespace vmddpm {
namespace gpu {

constexpr int kBackwardThreads = 512;  // the most of a block, and the most that a multiprocessor's registers allow
constexpr int kAloneThreads = 128;     // the most of a block with one state
constexpr int kCombineThreads = 128;
constexpr int kFoldThreads = 256;
constexpr int kFoldPieces = 4;         // per thread

VMDDPM_CONSTANT int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

inline int block_threads(const GpuScanPlan& plan) { return kWarp * plan.slices * plan.tiles; }

inline int64_t block_count(const BackwardArguments& a) { return a.batch * a.walks * a.segments * a.groups; }

// The shared-memory layout of a block of the adjoint scan.
ChunkLayout chunk_layout(const GpuScanPlan& plan, const ScanParams& p);

// The shared memory of a block of the forward scan.
int forward_shared_bytes(const GpuScanPlan& plan, bool wide);

// Replaces each segment's own contribution by the state that enters it: `first`, (B, K, D, N) or null, enters the first
// segment, or the last one if `reverse`.
void combine(const ScanParams& p, const GpuScanPlan& plan, void* segment_state, const void* segment_delta, const void* first,
             bool reverse, void* stream);

// out[i] = images[0][i] + images[1][i] + ..., in this order, rounded once, for i < count. `images` is Acc (parts,
// count), with Acc double if `out` is. With no parts the sum is zero.
struct Sum {
  const void* images;
  int64_t parts, count;
  void* out;
  DType dtype;
};

// Computes the sums, up to three of one type of `out` in a launch.
void fold(std::vector<Sum> sums, void* stream);

// The adjoint scan of one state.
void backward_alone(const BackwardArguments& a, const ScanParams& p, const GpuScanPlan& plan, void* stream);

// Stores the gradient of the state after each segment's last step in a.segment_state.
void adjoint_carries(BackwardArguments a, const ScanGradParams& g, const GpuScanPlan& plan, void* stream);

}  // namespace gpu
}  // namespace vmddpm
