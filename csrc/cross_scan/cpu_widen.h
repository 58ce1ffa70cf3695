// Loads N values in the accumulation's type, and stores them rounded.
#pragma once
#include "cpu_lanes.h"

namespace {

template <int N>
inline Lanes<float, N> widen_lanes(const float* from) {
  return load_as<Lanes<float, N>>(from);
}
template <int N>
inline Lanes<double, N> widen_lanes(const double* from) {
  return load_as<Lanes<double, N>>(from);
}
template <int N>
inline void narrow_lanes(float* to, Lanes<float, N> v) {
  store_as(to, v);
}
template <int N>
inline void narrow_lanes(double* to, Lanes<double, N> v) {
  store_as(to, v);
}

template <int N, typename T>
inline Lanes<float, N> widen_each(const T* from) {
  Lanes<float, N> v;
  for (int i = 0; i < N; ++i) v[i] = widen(from[i]);
  return v;
}
template <int N, typename T>
inline void narrow_each(T* to, Lanes<float, N> v) {
  for (int i = 0; i < N; ++i) narrow(v[i], to[i]);
}

#if defined(VMDDPM_PLAIN_VECTORS)
template <int N>
inline Lanes<float, N> widen_lanes(const BFloat16* from) {
  return widen_each<N>(from);
}
template <int N>
inline void narrow_lanes(BFloat16* to, Lanes<float, N> v) {
  narrow_each<N>(to, v);
}
#else
template <int N>
inline Lanes<float, N> widen_lanes(const BFloat16* from) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Lanes<float, N>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
#endif
  const auto bits = load_as<Lanes<uint16_t, N>>(from);
  return bit_cast<Lanes<float, N>>(__builtin_convertvector(bits, Lanes<uint32_t, N>) << 16);
}
template <int N>
inline void narrow_lanes(BFloat16* to, Lanes<float, N> v) {
  using U = Lanes<uint32_t, N>;
  const U bits = bit_cast<U>(v);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_as(to, __builtin_convertvector(select(v != v, U{} + 0x7fc0u, rounded), Lanes<uint16_t, N>));
}
#endif

#if defined(__F16C__) && !defined(VMDDPM_PLAIN_VECTORS)
template <int N>
inline Lanes<float, N> widen_lanes(const Half* from) {
  if constexpr (N == 4) {
    return (Lanes<float, N>)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  } else if constexpr (N == 8) {
    return (Lanes<float, N>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#if defined(__AVX512F__)
  } else if constexpr (N == 16) {
    return (Lanes<float, N>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#endif
  } else {
    return widen_each<N>(from);
  }
}
template <int N>
inline void narrow_lanes(Half* to, Lanes<float, N> v) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
  if constexpr (N == 4) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_cvtps_ph((__m128)v, kNearest));
  } else if constexpr (N == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)v, kNearest));
#if defined(__AVX512F__)
  } else if constexpr (N == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, (__m512)v, kNearest));
#endif
  } else {
    narrow_each<N>(to, v);
  }
}
#else
template <int N>
inline Lanes<float, N> widen_lanes(const Half* from) {
  return widen_each<N>(from);
}
template <int N>
inline void narrow_lanes(Half* to, Lanes<float, N> v) {
  narrow_each<N>(to, v);
}
#endif

}  // namespace
