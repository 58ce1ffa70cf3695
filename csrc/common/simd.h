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

template <typename T>
inline Vec<T> broadcast(T value) {
  return Vec<T>{} + value;
}

// Sum over the lanes, halving the register each time.
template <typename T, int bytes>
struct LaneSum {
  using V = typename VectorOf<T, bytes>::type;
  using H = typename VectorOf<T, bytes / 2>::type;
  static inline T of(const V& v) {
    struct Halves {
      H low, high;
    };
    const Halves halves = bit_cast<Halves>(v);
    return LaneSum<T, bytes / 2>::of(halves.low + halves.high);
  }
};

template <typename T>
struct LaneSum<T, 16> {
  static inline T of(const typename VectorOf<T, 16>::type& v) {
    T sum = v[0];
    for (int i = 1; i < 16 / static_cast<int>(sizeof(T)); ++i) sum += v[i];
    return sum;
  }
};

template <typename T>
inline T lane_sum(const Vec<T>& v) {
  return LaneSum<T, kVectorBytes>::of(v);
}

}  // namespace
