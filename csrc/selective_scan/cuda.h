// The selective scan on a GPU: how it is split (plan.cu), its two directions (fwd.cu, bwd.cu), and the sums of partial
// results (fold.cu).
//
// A thread holds S states of one channel in registers and walks the sequence. A warp is 32 neighbouring channels: all
// its lanes read the same B and C, broadcast from shared memory, and any visit order reads whole rows. A block is
// `tiles` warps of channels times `slices` warps of states.
#pragma once
#include "../common/limits.h"
#include "params.h"

namespace vmddpm {

struct GpuScanPlan {
  int32_t states_per_thread;  // S
  int32_t slices;             // warps with the same channels, each with S states of its own
  int32_t tiles;              // warps of channels in a block
  int64_t groups;             // blocks that cover the channels: ceil(D / (32 tiles))
  int64_t passes;             // launches that cover the states: ceil(N / (S slices))
  int64_t segment;            // steps of a segment, a multiple of the chunk
  int64_t segments;           // pieces of the sequence, scanned in parallel
  int64_t chunk, chunks;      // steps between checkpoints, and the number of chunks
  int64_t walks;              // blocks that share the routes: each walks every walks-th route
  int64_t images;             // partial images, with y or dx as their sum; 0 if y or dx is written directly
  bool meet;                  // atomics add two routes to each image, in either order; else one walk writes each image
  int64_t matrices;           // partial dB and dC; with several groups, each takes two
  int64_t part;               // images of the batch in one launch: workspaces have room for no more
};

// Reads only sizes and flags of `p`. Throws std::invalid_argument if a block needs more shared memory than there is.
GpuScanPlan cuda_scan_plan(const ScanParams& p, const GpuLimits& limits, bool backward);

// Workspaces for a part b of the batch. Checkpoints and segment states have the layout (..., N, D).
struct GpuScanWorkspace {
  void* segment_state;  // Acc (b, K, segments, N, D), or null if there is one segment
  void* segment_delta;  // Acc (b, K, segments, D), or null if there is one segment
  void* images;         // Acc (images, ...) with y's shape and memory order, or null
  void* matrices;       // Acc (2, matrices, b, K, L, N), summed over axis 1 to dB and dC, or null
  DType dB, dC;         // types of dB and dC if `matrices` is set; else they are Acc
};

// p.checkpoints is Acc (B, K, chunks, N, D) here. x and delta have one type; B and C both have that type or Acc, as has
// p.y without partial images. With partial images p.y is dense, of any type, with contiguous channels. Both functions
// throw std::runtime_error naming the kernel that could not be launched.
void cuda_scan_forward(const ScanParams& p, const GpuScanPlan& plan, const GpuScanWorkspace& work, int device, void* stream);

// dA is Acc (B, segments, K, D, N) here, dD and ddelta_bias (B, segments, K, D).
// dx and ddelta may be half precision if nothing is added to them: one pass, and for dx one route or routes not summed.
void cuda_scan_backward(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWorkspace& work, int device, void* stream);

// The steps between two checkpoints; a segment is a multiple of it.
constexpr int64_t kGpuChunk = 32;

}  // namespace vmddpm
