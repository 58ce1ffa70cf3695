// csrc/common/gpu/gpu.h for a CPU: the same names and signatures, so that g++ compiles the kernels unchanged. A block
// is a set of fibers that take turns (scheduler.h). Asynchronous operations happen as late as allowed, and undefined
// values are NaN or refused, so that a kernel that relies on either fails a test.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "emulation.h"
#include "half.h"

#define VMDDPM_DEVICE inline __attribute__((always_inline))
#define VMDDPM_CONSTANT constexpr inline
#define VMDDPM_KERNEL(threads, blocks) void
#define VMDDPM_ARGUMENTS(type) const type

// The last parameters are the source line of the call: threads that meet must share it, and messages name it.
#define VMDDPM_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace vmddpm {
namespace gpu {

constexpr int kWarp = 32;

inline void use_device(int) {}

// A GPU that runs every kernel, without a driver.
inline std::pair<std::string, std::string> refusal(const void*, int) { return {}; }
inline std::pair<int, int> versions() { return {0, 0}; }

template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, int64_t shared_bytes,
            void* /*stream*/, Params params) {
  if (emulation::substitute) {
    const void* address = reinterpret_cast<const void*>(kernel);
    if (blocks == 0) return;
    const char* problem = emulation::substitute(name, address, &params, sizeof params, blocks, threads, shared_bytes);
    if (problem) throw std::runtime_error(problem);
    return;
  }
  struct Bound {
    void (*kernel)(Params);
    const Params& params;
  };
  const Bound bound{kernel, params};
  const auto run = [](const void* data) {
    const Bound& b = *static_cast<const Bound*>(data);
    b.kernel(b.params);
  };
  emulation::launch(name, run, &bound, blocks, threads, shared_bytes);
}

VMDDPM_DEVICE int thread() { return emulation::here.thread; }
VMDDPM_DEVICE int threads() { return emulation::here.threads; }
VMDDPM_DEVICE int64_t block() { return emulation::here.block; }

VMDDPM_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

template <typename T>
VMDDPM_DEVICE T* opaque(T* address) {
  asm volatile("" : "+r"(address));
  return address;
}

VMDDPM_DEVICE int64_t wide_product(int32_t a, int32_t b) { return static_cast<int64_t>(a) * b; }

VMDDPM_DEVICE char* shared() { return emulation::here.shared; }

template <typename T>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(T);
  T at[kCount];
};

template <typename T>
VMDDPM_DEVICE T read(const T* from, VMDDPM_CALLER) {
  emulation::count(emulation::Access::read, from, sizeof(T), {file, line});
  return *from;
}

template <typename T>
VMDDPM_DEVICE void write(T* to, T value, VMDDPM_CALLER) {
  emulation::count(emulation::Access::write, to, sizeof(T), {file, line});
  *to = value;
}

template <typename T>
VMDDPM_DEVICE T read_if(bool wanted, const T* from, VMDDPM_CALLER) {
  emulation::count(emulation::Access::read, from, wanted ? sizeof(T) : 0, {file, line});
  return wanted ? *from : T();
}

template <typename T>
VMDDPM_DEVICE void write_if(bool wanted, T* to, T value, VMDDPM_CALLER) {
  emulation::count(emulation::Access::write, to, wanted ? sizeof(T) : 0, {file, line});
  if (wanted) *to = value;
}

template <typename T>
VMDDPM_DEVICE Vector<T> read_vector(const T* from, VMDDPM_CALLER) {
  emulation::count(emulation::Access::read, from, 16, {file, line});
  return *reinterpret_cast<const Vector<T>*>(from);
}

template <typename T>
VMDDPM_DEVICE void write_vector(T* to, const Vector<T>& vector, VMDDPM_CALLER) {
  emulation::count(emulation::Access::write, to, 16, {file, line});
  *reinterpret_cast<Vector<T>*>(to) = vector;
}

template <typename T>
VMDDPM_DEVICE T read_shared(const T* from, VMDDPM_CALLER) {
  emulation::count(emulation::Access::read_shared, from, sizeof(T), {file, line});
  return *from;
}

template <typename T>
VMDDPM_DEVICE void write_shared(T* to, T value, VMDDPM_CALLER) {
  emulation::count(emulation::Access::write_shared, to, sizeof(T), {file, line});
  *to = value;
}

VMDDPM_DEVICE void barrier(VMDDPM_CALLER) { emulation::barrier({file, line}); }

template <int n, typename T>
VMDDPM_DEVICE void exchange(T (&values)[n], int mask, VMDDPM_CALLER) {
  static_assert((std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) || std::is_same_v<T, Half> ||
                    std::is_same_v<T, BFloat16>,
                "__shfl_xor_sync has no overload for this type");
  emulation::exchange(values, n, sizeof(T), mask, {file, line});
}

template <int bytes>
VMDDPM_DEVICE void copy_async(void* to, const void* from, int valid, VMDDPM_CALLER) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulation::start_copy(to, from, bytes, valid, {file, line});
}

VMDDPM_DEVICE void commit_copies() { emulation::commit_copies(); }

template <int pending>
VMDDPM_DEVICE void wait_copies(VMDDPM_CALLER) {
  static_assert(pending >= 0, "a number of groups");
  emulation::wait_copies(pending, {file, line});
}

template <int count, typename T>
VMDDPM_DEVICE void atomic_add(T* to, const T (&values)[count]) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "float or double");
  for (int i = 0; i < count; ++i) emulation::atomic_add(to + i, values[i]);
}

// Flushes results as .ftz does. Subnormal inputs need no flushing: 2^x is 1 for them as for zero.
VMDDPM_DEVICE float exp2_unit(float x) { return emulation::flushed(::exp2f(x)); }

VMDDPM_DEVICE float reciprocal_unit(float x) { return emulation::flushed(1.0f / emulation::flushed(x)); }

VMDDPM_DEVICE float widen(Half v) { return emulation::widened<Half>(v.bits); }
VMDDPM_DEVICE float widen(BFloat16 v) { return emulation::widened<BFloat16>(v.bits); }
VMDDPM_DEVICE float widen(float v) { return v; }
VMDDPM_DEVICE double widen(double v) { return v; }

VMDDPM_DEVICE void narrow(float v, Half& out) { out.bits = emulation::narrowed<Half>(v); }
VMDDPM_DEVICE void narrow(float v, BFloat16& out) { out.bits = emulation::narrowed<BFloat16>(v); }
VMDDPM_DEVICE void narrow(float v, float& out) { out = v; }
VMDDPM_DEVICE void narrow(double v, double& out) { out = v; }
VMDDPM_DEVICE void narrow(double v, float& out) { out = static_cast<float>(v); }
VMDDPM_DEVICE void narrow(float v, double& out) { out = v; }
VMDDPM_DEVICE void narrow(double v, Half& out) { out.bits = emulation::narrowed<Half>(v); }
VMDDPM_DEVICE void narrow(double v, BFloat16& out) { out.bits = emulation::narrowed<BFloat16>(v); }

}  // namespace gpu
}  // namespace vmddpm

#undef VMDDPM_CALLER
