// Short registers of N values of any type; N is at most the side of the squares that are transposed in registers.
#pragma once
#include "../common/lanes.h"

namespace {

template <typename T, int N>
using Lanes = typename VectorOf<T, N * static_cast<int>(sizeof(T))>::type;

template <int bytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = uint16_t;
};
template <>
struct BitsOf<4> {
  using type = uint32_t;
};
template <>
struct BitsOf<8> {
  using type = uint64_t;
};
// Copies depend only on the width of a type.
template <typename T>
using Bits = typename BitsOf<sizeof(T)>::type;

// kSide: the side of the largest square of T that fits into the registers.
constexpr int kMostSide = kVectorBytes == 64 ? 16 : 8;
template <typename T>
constexpr int kSide = kLanes<T> < kMostSide ? kLanes<T> : kMostSide;

template <int N>
struct Side {
  static constexpr int value = N;
};

// Calls f(Side<N>()) with the largest N <= n.
template <typename T, typename Function>
inline void with_side(int64_t n, Function f) {
  if constexpr (kSide<T> >= 16) {
    if (n >= 16) return f(Side<16>());
  }
  if constexpr (kSide<T> >= 8) {
    if (n >= 8) return f(Side<8>());
  }
  if constexpr (kSide<T> >= 4) {
    if (n >= 4) return f(Side<4>());
  }
  if constexpr (sizeof(T) == 8) {
    if (n >= 2) return f(Side<2>());
  }
  f(Side<1>());
}

// Calls f(start) for squares or registers of `side` values that cover n values; the last one overlaps the previous one.
template <typename Function>
VMDDPM_INLINE void for_each_start(int64_t n, int64_t side, Function f) {
  for (int64_t i = 0; i + side < n; i += side) f(i);
  f(n - side);
}

// Prefetches the cache line at the address into the L1 cache. The address may be invalid.
inline void prefetch_near(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 3);
#else
  (void)address;
#endif
}

template <typename V, typename T>
inline V load_as(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename V, typename T>
inline void store_as(T* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

#if defined(VMDDPM_PLAIN_VECTORS) || (!defined(__clang__) && __GNUC__ < 12)
template <typename V>
inline V reversed_lanes(V v) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(v[0]));
  V result;
  for (int i = 0; i < lanes; ++i) result[i] = v[lanes - 1 - i];
  return result;
}
#else
template <typename V>
inline V reversed_lanes(V v) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(v[0]));
  if constexpr (lanes == 1) {
    return v;
  } else if constexpr (lanes == 2) {
    return __builtin_shufflevector(v, v, 1, 0);
  } else if constexpr (lanes == 4) {
    return __builtin_shufflevector(v, v, 3, 2, 1, 0);
  } else if constexpr (lanes == 8) {
    return __builtin_shufflevector(v, v, 7, 6, 5, 4, 3, 2, 1, 0);
  } else if constexpr (lanes == 16) {
    return __builtin_shufflevector(v, v, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  } else {
    return __builtin_shufflevector(v, v, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12,
                                   11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  }
}
#endif

// Exchanges lane j of rows[i] and lane i of rows[j].
template <int N, typename V>
VMDDPM_INLINE void turn_square(V* rows) {
  if constexpr (N > 1) {
    V turned[N];
    VMDDPM_UNROLL
    for (int stage = 1; stage < N; stage *= 2) {
      VMDDPM_UNROLL
      for (int i = 0; i < N / 2; ++i) interleave(rows[i], rows[i + N / 2], turned[2 * i], turned[2 * i + 1]);
      VMDDPM_UNROLL
      for (int i = 0; i < N; ++i) rows[i] = turned[i];
    }
  }
}

}  // namespace
