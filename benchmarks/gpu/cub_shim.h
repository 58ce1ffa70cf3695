// What VMamba's backward uses of CUB and CUDA 13 no longer has. Force-included (nvcc -include) in front of its sources,
// which stay as they are.
#pragma once
#include <cub/version.cuh>

#if CUB_VERSION >= 300000
namespace cub {

// The block waits for all of its threads.
__device__ __forceinline__ void CTA_SYNC() { __syncthreads(); }

// The thread's place in its warp.
__device__ __forceinline__ unsigned int LaneId() {
  unsigned int lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

}  // namespace cub
#endif
