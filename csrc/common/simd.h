// One SIMD register of channels. The width follows the instruction set this file is compiled for; arithmetic,
// comparison and `?:` act lane by lane, as GCC's and clang's vector types define them.
//
// Everything lives in an unnamed namespace and no standard template is used: the same source is compiled once per
// instruction set, and the linker must never keep one set's copy of an inline function for another.
#pragma once
#include <cstdint>
#include <cstring>

#if !defined(__GNUC__)
#error "the CPU kernels use GCC/clang vector types: build with GCC or clang (clang-cl on Windows)"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T, int bytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};

template <typename T>
using Vec = typename VectorOf<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// A register folded to 16 bytes by adding its upper half to its lower half until it fits.
template <typename T, int bytes>
inline typename VectorOf<T, 16>::type fold(typename VectorOf<T, bytes>::type v) {
  if constexpr (bytes == 16) {
    return v;
  } else {
    struct Halves {
      typename VectorOf<T, bytes / 2>::type low, high;
    };
    const Halves halves = bit_cast<Halves>(v);
    return fold<T, bytes / 2>(halves.low + halves.high);
  }
}

// target[s] += the sum over the lanes of v[s].
template <typename T, int S>
inline void add_lane_sums(const Vec<T>* v, T* target) {
  for (int s = 0; s < S; ++s) {
    const auto folded = fold<T, kVectorBytes>(v[s]);
    T sum = folded[0];
    for (int i = 1; i < 16 / static_cast<int>(sizeof(T)); ++i) sum += folded[i];
    target[s] += sum;
  }
}

#if defined(__clang__) || __GNUC__ >= 12
// Four at a time: a transposition of four by four instead of four sums along a register.
template <>
inline void add_lane_sums<float, 4>(const Vec<float>* v, float* target) {
  using Q = VectorOf<float, 16>::type;
  Q q[4], sums;
  for (int s = 0; s < 4; ++s) q[s] = fold<float, kVectorBytes>(v[s]);
  const Q ab = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5) + __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7);
  const Q cd = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5) + __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
  std::memcpy(&sums, target, sizeof(Q));
  sums += __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  std::memcpy(target, &sums, sizeof(Q));
}
#endif

}  // namespace
