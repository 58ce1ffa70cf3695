// The GPU operations that kernels and their launches use. They use nothing else of CUDA, so that
// tests/cuda_emulation/gpu.h can run the same sources on a CPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "runtime.h"

#define VMDDPM_DEVICE __device__ __forceinline__
// A constant expression for host and device.
#define VMDDPM_CONSTANT constexpr __host__ __device__ inline
// At most `threads` threads in a block, and registers for at least `blocks` blocks on a multiprocessor.
#define VMDDPM_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define VMDDPM_ARGUMENTS(type) const __grid_constant__ type

namespace vmddpm {
namespace gpu {

constexpr int kWarp = 32;

VMDDPM_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
VMDDPM_DEVICE int threads() { return static_cast<int>(blockDim.x); }
VMDDPM_DEVICE int64_t block() { return blockIdx.x; }

// Returns the value and hides its origin from the compiler, which then computes dependent values inside a loop instead
// of keeping them in scarce registers.
VMDDPM_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// opaque for an address in global memory: the sum stays in a register instead of its parts.
template <typename T>
VMDDPM_DEVICE T* opaque(T* address) {
  size_t number = __cvta_generic_to_global(address);
  asm volatile("" : "+l"(number));
  return static_cast<T*>(__cvta_global_to_generic(number));
}

// a * b in one instruction: a compiler that widens a factor before a loop multiplies 64 by 64 bits inside it.
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

// 16 bytes, the most that a thread moves in one access.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(T);
  T at[kCount];
};

// Accesses to elements of global memory, and to vectors aligned to 16 bytes; a kernel must not write memory that it
// reads as vectors. The emulation counts these accesses and those to shared memory below.
template <typename T>
VMDDPM_DEVICE T read(const T* from) { return *from; }

template <typename T>
VMDDPM_DEVICE void write(T* to, T value) { *to = value; }

// read and write for lanes with `wanted`; other lanes read a default value and write nothing.
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
  // The compiler may split an assignment.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

template <typename T>
VMDDPM_DEVICE T read_shared(const T* from) { return *from; }

template <typename T>
VMDDPM_DEVICE void write_shared(T* to, T value) { *to = value; }

// Waits for all threads of the block and makes their writes visible to each other.
VMDDPM_DEVICE void barrier() { __syncthreads(); }

// Exchanges values[i] with the lane whose index differs in the bits of `mask`; all lanes of the warp must take part.
template <int n, typename T>
VMDDPM_DEVICE void exchange(T (&values)[n], int mask) {
#pragma unroll
  for (int i = 0; i < n; ++i) values[i] = __shfl_xor_sync(0xffffffffu, values[i], mask);
}

// Starts an asynchronous copy of `bytes` (4, 8 or 16; both addresses are aligned to it) to shared memory. The first
// `valid` bytes are read, the others become zero. The copy is complete for this thread after wait_copies, and for other
// threads after a barrier too.
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

// Waits until at most `pending` of the latest groups are incomplete.
template <int pending>
VMDDPM_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Adds atomically to `count` contiguous values in global memory, aligned to their total size. Subnormal floats count as
// zero.
template <int count>
VMDDPM_DEVICE void atomic_add(float* to, const float (&values)[count]) {
  const size_t at = __cvta_generic_to_global(to);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (count == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(values[0]), "f"(values[1]), "f"(values[2]),
                 "f"(values[3])
                 : "memory");
    return;
  }
  if constexpr (count == 2) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(at), "f"(values[0]), "f"(values[1]) : "memory");
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("red.global.add.f32 [%0], %1;" ::"l"(at + 4 * i), "f"(values[i]) : "memory");
}

template <int count>
VMDDPM_DEVICE void atomic_add(double* to, const double (&values)[count]) {
  const size_t at = __cvta_generic_to_global(to);
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("red.global.add.f64 [%0], %1;" ::"l"(at + 8 * i), "d"(values[i]) : "memory");
}

// 2^x on the special-function unit: relative error below 2^-22, exactly 1 at 0, and 0 for very negative x.
VMDDPM_DEVICE float exp2_unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x on the special-function unit: error of at most one unit in the last place.
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
