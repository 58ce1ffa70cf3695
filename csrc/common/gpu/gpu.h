// The few things the kernels ask of a GPU. Kernels and their launches are written against this file alone, so that
// another machine can stand in for it: tests/cuda_emulation/gpu.h runs the same sources on a CPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "runtime.h"

#define VMDDPM_DEVICE __device__ __forceinline__
// For the compiler and the host.
#define VMDDPM_CONSTANT constexpr __host__ __device__ inline
// At most so many threads a block, and at least so many blocks' registers on a multiprocessor.
#define VMDDPM_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define VMDDPM_ARGUMENTS(type) const __grid_constant__ type

namespace vmddpm {
namespace gpu {

constexpr int kWarp = 32;

VMDDPM_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
VMDDPM_DEVICE int threads() { return static_cast<int>(blockDim.x); }
VMDDPM_DEVICE int64_t block() { return blockIdx.x; }

// The value itself, of unknown origin to the compiler: what is computed from it in a loop is computed there each time,
// instead of before the loop and kept in registers that the loop's own work is short of.
VMDDPM_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Likewise, in global memory: a sum that is kept in registers, instead of its parts.
template <typename T>
VMDDPM_DEVICE T* opaque(T* address) {
  size_t number = __cvta_generic_to_global(address);
  asm volatile("" : "+l"(number));
  return static_cast<T*>(__cvta_global_to_generic(number));
}

// a * b, in one instruction: a compiler that widens a factor before a loop multiplies 64 bits by 64 within it.
VMDDPM_DEVICE int64_t wide_product(int32_t a, int32_t b) {
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}

// The block's shared memory, aligned to 16 bytes.
VMDDPM_DEVICE char* shared() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<char*>(memory);
}

// 16 bytes, what a thread moves at once at most.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(T);
  T at[kCount];
};

// Elements of global memory, and vectors of them at addresses that are multiples of 16 bytes; a kernel does not write what
// it reads as vectors. The emulation counts what goes through these, and through those of shared memory below.
template <typename T>
VMDDPM_DEVICE T read(const T* from) { return *from; }

template <typename T>
VMDDPM_DEVICE void write(T* to, T value) { *to = value; }

// The same for the lanes of a warp for which `wanted` is true; others read nothing of use.
template <typename T>
VMDDPM_DEVICE T read_if(bool wanted, const T* from) { return wanted ? *from : T(); }

template <typename T>
VMDDPM_DEVICE void write_if(bool wanted, T* to, T value) {
  if (wanted) *to = value;
}

template <typename T>
VMDDPM_DEVICE Vector<T> read_vector(const T* from) {
  const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
  Vector<T> vector;
  memcpy(&vector, &words, 16);
  return vector;
}

template <typename T>
VMDDPM_DEVICE void write_vector(T* to, const Vector<T>& vector) {
  uint4 words;
  memcpy(&words, &vector, 16);
  // An assignment the compiler takes apart where it likes.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

template <typename T>
VMDDPM_DEVICE T read_shared(const T* from) { return *from; }

template <typename T>
VMDDPM_DEVICE void write_shared(T* to, T value) { *to = value; }

// Every thread of the block arrives, and what each wrote to memory the others see.
VMDDPM_DEVICE void barrier() { __syncthreads(); }

// values[i] of the lane whose index differs in the bits of `mask`; every lane of the warp takes part.
template <int n, typename T>
VMDDPM_DEVICE void exchange(T (&values)[n], int mask) {
#pragma unroll
  for (int i = 0; i < n; ++i) values[i] = __shfl_xor_sync(0xffffffffu, values[i], mask);
}

// Starts a copy of `bytes` (4, 8 or 16, both addresses aligned to it) into shared memory, of which the first `valid`
// are read and the others become zero. It is complete for the thread that started it after wait_copies, for others
// after a barrier as well.
template <int bytes>
VMDDPM_DEVICE void copy_async(void* to, const void* from, int valid) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(valid) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(from), "n"(bytes), "r"(valid) : "memory");
  }
}

// Closes a group of copies.
VMDDPM_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of the latest groups are not complete.
template <int pending>
VMDDPM_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 2^x on the special-function unit: relative error below 2^-22, exactly 1 at 0, 0 far below.
VMDDPM_DEVICE float exp2_unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x on the special-function unit: error of one unit in the last place.
VMDDPM_DEVICE float reciprocal_unit(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

VMDDPM_DEVICE float widen(__half v) { return __half2float(v); }
VMDDPM_DEVICE float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
VMDDPM_DEVICE float widen(float v) { return v; }
VMDDPM_DEVICE double widen(double v) { return v; }

using Half = __half;
using BFloat16 = __nv_bfloat16;

// Rounds to nearest, ties to even.
VMDDPM_DEVICE void narrow(float v, Half& out) { out = __float2half_rn(v); }
VMDDPM_DEVICE void narrow(float v, BFloat16& out) { out = __float2bfloat16_rn(v); }
VMDDPM_DEVICE void narrow(float v, float& out) { out = v; }
VMDDPM_DEVICE void narrow(double v, double& out) { out = v; }
VMDDPM_DEVICE void narrow(double v, float& out) { out = static_cast<float>(v); }
VMDDPM_DEVICE void narrow(float v, double& out) { out = v; }
VMDDPM_DEVICE void narrow(double v, Half& out) { out = __double2half(v); }
VMDDPM_DEVICE void narrow(double v, BFloat16& out) { out = __double2bfloat16(v); }

}  // namespace gpu
}  // namespace vmddpm
