// The selective scan on a GPU: how it is cut (plan.cu), its two directions (fwd.cu, bwd.cu), and what adds up their
// parts (fold.cu).
//
// A thread owns one channel and S of its states, in registers, and walks the sequence. A warp is 32 neighbouring
// channels, so that B and C are the same for all of it and come as broadcasts from shared memory, and any visit order
// reads whole rows. A block is `tiles` warps of channels times `slices` warps of states.
#pragma once
#include "../common/limits.h"
#include "params.h"

namespace vmddpm {

struct GpuScanPlan {
  int32_t states_per_thread;  // S
  int32_t slices;             // warps that share their channels, each with S other states
  int32_t tiles;              // warps of channels in a block
  int64_t groups;             // blocks that cover the channels: ceil(D / (32 tiles))
  int64_t passes;             // launches that cover the states: ceil(N / (S slices))
  int64_t segment;            // steps of a segment, a multiple of the chunk
  int64_t segments;           // pieces of the sequence that are scanned side by side
  int64_t chunk, chunks;      // steps between checkpoints, and how many there are
  int64_t walks;              // blocks that the routes are shared out to: each walks every walks-th
  int64_t images;             // partial images whose sum is y or dx; 0 if that is written at once
  bool meet;                  // two routes are added to an image, whichever comes first, else each has its own or a block's
  int64_t matrices;           // partial dB and dC, each of two groups if there are more
  int64_t part;               // of the batch, that is walked at once: workspaces have room for no more
};

// Sizes only are read of `p`. Throws std::invalid_argument if a block needs more shared memory than there is.
GpuScanPlan cuda_scan_plan(const ScanParams& p, const GpuLimits& limits, bool backward);

// Workspaces, beside what ScanParams has, of a part b of the batch. States of checkpoints and segments lie as (..., N, D).
struct GpuScanWorkspace {
  void* segment_state;  // Acc (b, K, segments, N, D), or null if there is one segment
  void* segment_delta;  // Acc (b, K, segments, D), likewise
  void* images;         // Acc (images, ...) of y's shape and order in memory, or null
  void* matrices;       // Acc (2, matrices, b, K, L, N), whose sums over the second axis are dB and dC, or null if written at once
  DType dB, dC;         // of these, then; else they are Acc, and not rounded
};

// p.checkpoints is Acc (B, K, chunks, N, D) here. x and delta are of one type, B and C both of that or of the
// accumulation's. Without partial images p.y is of one of these two; with them it has no gaps in memory, any type and the
// channels next to each other. Both throw std::runtime_error naming the kernel that could not be launched.
void cuda_scan_forward(const ScanParams& p, const GpuScanPlan& plan, const GpuScanWorkspace& work, int device, void* stream);

// dA is Acc (B, segments, K, D, N) here, dD and ddelta_bias (B, segments, K, D).
// dx and ddelta may be half precision if nothing is added to them: one pass, and for dx one route or routes not summed.
void cuda_scan_backward(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWorkspace& work, int device, void* stream);

// The steps between two checkpoints, and from one segment to the next a multiple of it.
constexpr int64_t kGpuChunk = 32;

}  // namespace vmddpm
