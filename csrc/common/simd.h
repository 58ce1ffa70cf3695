// SIMD registers, as wide as those of the instruction set this file is compiled for. Arithmetic and comparisons act on
// each lane, as GCC's and clang's vector types define them. Other compilers use simd_plain.h.
//
// Each source is compiled once per instruction set. To keep the linker from using one set's copy of an inline function
// for another, everything is in an unnamed namespace and no standard templates are used.
#pragma once
#include <cstdint>
#include <cstring>

#if !defined(__GNUC__) && !defined(VMDDPM_PLAIN_VECTORS)
#define VMDDPM_PLAIN_VECTORS
#endif

#ifdef VMDDPM_PLAIN_VECTORS
#include "simd_plain.h"
#elif defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define VMDDPM_UNROLL  // instrumented loops take minutes to compile unrolled
#elif defined(__clang__)
#define VMDDPM_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define VMDDPM_UNROLL _Pragma("GCC unroll 16")
#else
#define VMDDPM_UNROLL
#endif

// NOINLINE: for loops that need all registers. INLINE: for functions that these loops call in each step.
#if defined(__GNUC__)
#define VMDDPM_NOINLINE __attribute__((noinline))
#define VMDDPM_INLINE inline __attribute__((always_inline))
#else
#define VMDDPM_NOINLINE
#define VMDDPM_INLINE inline
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#ifdef VMDDPM_PLAIN_VECTORS
template <typename T, int bytes = kVectorBytes>
struct VectorOf {
  using type = PlainVec<T, bytes / static_cast<int>(sizeof(T))>;
};
#else
template <typename T, int bytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};

template <typename Mask, typename V>
inline V select(Mask mask, V a, V b) {
  return mask ? a : b;
}
#endif

template <typename T>
using Vec = typename VectorOf<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
inline Vec<T> splat(T value) {
  return Vec<T>{} + value;
}

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// at_least is max(v, low), at_most is min(v, high); NaN for NaN.
#if defined(__AVX512F__) && !defined(VMDDPM_PLAIN_VECTORS)
inline Vec<float> at_least(Vec<float> v, float low) { return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(low), (__m512)v); }
inline Vec<double> at_least(Vec<double> v, double low) {
  return (Vec<double>)_mm512_max_pd(_mm512_set1_pd(low), (__m512d)v);
}
inline Vec<double> at_most(Vec<double> v, double high) {
  return (Vec<double>)_mm512_min_pd(_mm512_set1_pd(high), (__m512d)v);
}
#elif defined(__AVX2__) && !defined(VMDDPM_PLAIN_VECTORS)
inline Vec<float> at_least(Vec<float> v, float low) { return (Vec<float>)_mm256_max_ps(_mm256_set1_ps(low), (__m256)v); }
inline Vec<double> at_least(Vec<double> v, double low) {
  return (Vec<double>)_mm256_max_pd(_mm256_set1_pd(low), (__m256d)v);
}
inline Vec<double> at_most(Vec<double> v, double high) {
  return (Vec<double>)_mm256_min_pd(_mm256_set1_pd(high), (__m256d)v);
}
#else
inline Vec<float> at_least(Vec<float> v, float low) {
  const Vec<float> least = splat(low);
  return select(v < least, least, v);
}
inline Vec<double> at_least(Vec<double> v, double low) {
  const Vec<double> least = splat(low);
  return select(v < least, least, v);
}
inline Vec<double> at_most(Vec<double> v, double high) {
  const Vec<double> most = splat(high);
  return select(most < v, most, v);
}
#endif

// Interleaves the lower halves of a and b to (a0, b0, a1, b1, ...), and their upper halves.
#if defined(VMDDPM_PLAIN_VECTORS) || (!defined(__clang__) && __GNUC__ < 12)
template <typename V>
inline void interleave(V a, V b, V& low, V& high) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(a[0]));
  for (int i = 0; i < lanes / 2; ++i) {
    low[2 * i] = a[i];
    low[2 * i + 1] = b[i];
    high[2 * i] = a[lanes / 2 + i];
    high[2 * i + 1] = b[lanes / 2 + i];
  }
}
#else
template <typename V>
inline void interleave(V a, V b, V& low, V& high) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(a[0]));
  if constexpr (lanes == 2) {
    low = __builtin_shufflevector(a, b, 0, 2);
    high = __builtin_shufflevector(a, b, 1, 3);
  } else if constexpr (lanes == 4) {
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  } else if constexpr (lanes == 8) {
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}
#endif

constexpr int log2_of(int n) { return n == 1 ? 0 : 1 + log2_of(n / 2); }

// S registers hold a matrix by rows. Each stage interleaves the lower half of the values with the upper half; after
// log2(rows) stages the matrix is transposed.
template <typename T, int S, int kStages>
inline void shuffle_stages(Vec<T>* matrix) {
  Vec<T> shuffled[S];
  for (int stage = 0; stage < kStages; ++stage) {
    VMDDPM_UNROLL
    for (int i = 0; i < S / 2; ++i) interleave(matrix[i], matrix[i + S / 2], shuffled[2 * i], shuffled[2 * i + 1]);
    VMDDPM_UNROLL
    for (int i = 0; i < S; ++i) matrix[i] = shuffled[i];
  }
}

// Exchanges lane j of rows[i] and lane i of rows[j].
template <typename T>
inline void transpose(Vec<T>* rows) {
  shuffle_stages<T, kLanes<T>, log2_of(kLanes<T>)>(rows);
}

// Adds the upper half of a register to its lower half until `bytes` are left.
template <typename T, int bytes, typename V>
inline typename VectorOf<T, bytes>::type fold(V v) {
  if constexpr (sizeof(V) == bytes) {
    return v;
  } else {
    using Half = typename VectorOf<T, static_cast<int>(sizeof(V)) / 2>::type;
    struct Halves {
      Half low, high;
    };
    const Halves halves = bit_cast<Halves>(v);
    return fold<T, bytes>(halves.low + halves.high);
  }
}

// target[s] += the sum of the lanes of v[s], by a butterfly: each stage adds two registers into one.
template <typename T, int S>
VMDDPM_INLINE void add_lane_sums(const Vec<T>* v, T* target) {
  constexpr int size = static_cast<int>(sizeof(T)), W = kLanes<T>;
  if constexpr (S > W) {
    add_lane_sums<T, W>(v, target);
    add_lane_sums<T, S - W>(v + W, target + W);
  } else if constexpr (S * size < 16) {
    for (int s = 0; s < S; ++s) {
      const auto folded = fold<T, 16>(v[s]);
      T sum = folded[0];
      for (int i = 1; i < 16 / size; ++i) sum += folded[i];
      target[s] += sum;
    }
  } else {
    using Sums = typename VectorOf<T, S * size>::type;
    Sums sums[S];
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) sums[s] = fold<T, S * size>(v[s]);
    VMDDPM_UNROLL
    for (int half = S / 2; half >= 1; half /= 2) {
      VMDDPM_UNROLL
      for (int s = 0; s < half; ++s) {
        Sums low, high;
        interleave(sums[s], sums[s + half], low, high);
        sums[s] = low + high;
      }
    }
    Sums total;
    std::memcpy(&total, target, sizeof(Sums));
    total += sums[0];
    std::memcpy(target, &total, sizeof(Sums));
  }
}

#if !defined(VMDDPM_PLAIN_VECTORS) && defined(__AVX2__) && (defined(__clang__) || __GNUC__ >= 12)
// add_lane_sums with shuffles within 16 bytes, which are cheaper, up to the last stage.
template <>
VMDDPM_INLINE void add_lane_sums<float, 8>(const Vec<float>* v, float* target) {
  using Sums = VectorOf<float, 32>::type;
  Sums pairs[4], quads[2], total;
  VMDDPM_UNROLL
  for (int s = 0; s < 4; ++s) {
    const Sums a = fold<float, 32>(v[2 * s]), b = fold<float, 32>(v[2 * s + 1]);
    pairs[s] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
               __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  VMDDPM_UNROLL
  for (int s = 0; s < 2; ++s) {
    const Sums a = pairs[2 * s], b = pairs[2 * s + 1];
    quads[s] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
               __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  std::memcpy(&total, target, sizeof(Sums));
  total += __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
  std::memcpy(target, &total, sizeof(Sums));
}
#endif

// Prefetches the cache line at the address into the L2 cache. The address may be invalid.
inline void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 2);
#else
  (void)address;
#endif
}

}  // namespace
