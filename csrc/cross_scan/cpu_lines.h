// Copies of contiguous runs, forwards or backwards, through the cache or past it, and sums of runs.
#pragma once
#include "cpu_widen.h"

#if defined(__SSE2__) && !defined(VMDDPM_PLAIN_VECTORS)
#include <emmintrin.h>
#endif

namespace {

constexpr int64_t kCacheLine = 64;

// A non-temporal store, which does not read the cache line first; `to` is aligned to the register.
template <typename V>
inline void store_past_cache(void* to, V v) {
#if defined(VMDDPM_PLAIN_VECTORS)
  std::memcpy(to, &v, sizeof(v));
#elif defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#else
  std::memcpy(to, &v, sizeof(v));
#endif
}

// Orders non-temporal stores before later stores of this thread.
inline void finish_past_cache() {
#if defined(__SSE2__) && !defined(VMDDPM_PLAIN_VECTORS)
  _mm_sfence();
#endif
}

// kLanes<T> values from position i of a run of n values, read forwards or backwards.
template <bool kReversed, typename T>
VMDDPM_INLINE Vec<T> lanes_at(const T* from, int64_t n, int64_t i) {
  return kReversed ? reversed_lanes(load(from + n - kLanes<T> - i)) : load(from + i);
}

template <bool kReversed, typename T>
VMDDPM_INLINE void copy_each(T* to, const T* from, int64_t n, int64_t first, int64_t end) {
  for (int64_t i = first; i < end; ++i) to[i] = from[kReversed ? n - 1 - i : i];
}

template <bool kReversed, typename T>
inline void copy_run(T* to, const T* from, int64_t n, bool past_cache) {
  constexpr int64_t W = kLanes<T>, size = sizeof(T);
  if (n < W) return copy_each<kReversed>(to, from, n, 0, n);
  if (past_cache && n * size >= 2 * kCacheLine && reinterpret_cast<uintptr_t>(to) % size == 0) {
    const int64_t head = -reinterpret_cast<intptr_t>(to) & (kCacheLine - 1);
    const int64_t first = head / size, end = first + (n - first) * size / kCacheLine * (kCacheLine / size);
    copy_each<kReversed>(to, from, n, 0, first);
    for (int64_t i = first; i < end; i += W) store_past_cache(to + i, lanes_at<kReversed>(from, n, i));
    copy_each<kReversed>(to, from, n, end, n);
    return;
  }
  for (int64_t i = 0; i + W < n; i += W) store(to + i, lanes_at<kReversed>(from, n, i));
  store(to + n - W, lanes_at<kReversed>(from, n, n - W));
}

// to[i] = from[i], or from[n - 1 - i].
template <typename T>
inline void copy_run(T* to, const T* from, int64_t n, bool reversed, bool past_cache) {
  return reversed ? copy_run<true>(to, from, n, past_cache) : copy_run<false>(to, from, n, past_cache);
}

template <typename T>
struct Run {
  const T* start;
  bool reversed;
};

// to[i] = the sum of the runs at i, in order.
template <typename Acc, typename T>
inline void sum_runs(const Run<T>* runs, int64_t count, int64_t n, T* to) {
  with_side<Acc>(n, [&](auto side) {
    constexpr int N = decltype(side)::value;
    for_each_start(n, N, [&](int64_t i) {
      const auto lanes_of = [&](const Run<T>& run) {
        return run.reversed ? reversed_lanes(widen_lanes<N>(run.start + n - N - i)) : widen_lanes<N>(run.start + i);
      };
      Lanes<Acc, N> sum = lanes_of(runs[0]);
      for (int64_t k = 1; k < count; ++k) sum = sum + lanes_of(runs[k]);
      narrow_lanes<N>(to + i, sum);
    });
  });
}

}  // namespace
