// Loads and stores of registers from memory of any floating-point type.
#pragma once
#include "simd.h"
#include "tensor.h"

namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }
inline float widen(Half v) {
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fff) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;  // moves the exponent's bias, subnormals included
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | static_cast<uint32_t>(v.bits & 0x8000) << 16);
}

// Rounds to nearest, ties to even.
inline void narrow(float v, float& to) { to = v; }
inline void narrow(double v, double& to) { to = v; }
inline void narrow(double v, float& to) { to = static_cast<float>(v); }
inline void narrow(float v, double& to) { to = v; }
inline void narrow(float v, BFloat16& to) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(v != v ? 0x7fc0u : rounded);
}
inline void narrow(float v, Half& to) {
  const uint32_t bits = bit_cast<uint32_t>(v), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 65536 and above
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: the sum with 0.5 rounds to a multiple of 2^-24
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(half | sign);
}
template <typename Target>
inline void narrow(double v, Target& to) {
  narrow(static_cast<float>(v), to);
}

// Loads kLanes values as one register of T; store_lanes is the inverse.
template <typename T, typename Source>
inline Vec<T> load_lanes(const Source* from) {
  Vec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = static_cast<T>(widen(from[i]));
  return v;
}
template <>
inline Vec<float> load_lanes<float>(const float* from) {
  return load(from);
}
template <>
inline Vec<double> load_lanes<double>(const double* from) {
  return load(from);
}

template <typename T, typename Target>
inline void store_lanes(Target* to, Vec<T> v) {
  for (int i = 0; i < kLanes<T>; ++i) narrow(v[i], to[i]);
}
template <>
inline void store_lanes<float>(float* to, Vec<float> v) {
  store(to, v);
}
template <>
inline void store_lanes<double>(double* to, Vec<double> v) {
  store(to, v);
}

#ifndef VMDDPM_PLAIN_VECTORS
using VecU16 = typename VectorOf<uint16_t, kVectorBytes / 2>::type;

template <>
inline Vec<float> load_lanes<float>(const BFloat16* from) {
  VecU16 bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bit_cast<Vec<float>>(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
}

template <>
inline void store_lanes<float>(BFloat16* to, Vec<float> v) {
  const Vec<uint32_t> bits = bit_cast<Vec<uint32_t>>(v);
  const Vec<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU16 halves = __builtin_convertvector(select(v != v, Vec<uint32_t>{} + 0x7fc0u, rounded), VecU16);
  std::memcpy(to, &halves, sizeof(halves));
}

#if defined(__AVX512F__)
template <>
inline Vec<float> load_lanes<float>(const Half* from) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
template <>
inline void store_lanes<float>(Half* to, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__) && defined(__F16C__)
template <>
inline Vec<float> load_lanes<float>(const Half* from) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
template <>
inline void store_lanes<float>(Half* to, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
template <>
inline Vec<float> load_lanes<float>(const Half* from) {
  VecU16 packed;
  std::memcpy(&packed, from, sizeof(packed));
  const Vec<uint32_t> bits = __builtin_convertvector(packed, Vec<uint32_t>);
  const Vec<uint32_t> magnitude = (bits & 0x7fffu) << 13, infinite = Vec<uint32_t>{} + 0x7f800000u;
  const Vec<float> scaled = bit_cast<Vec<float>>(magnitude) * 0x1p112f;
  const Vec<uint32_t> special = select(magnitude >= 0x0f800000u, infinite, Vec<uint32_t>{});
  return bit_cast<Vec<float>>(bit_cast<Vec<uint32_t>>(scaled) | special | ((bits & 0x8000u) << 16));
}
#endif
#endif

// Calls f(a value of the accumulation's type, a value of the tensor's type) to pass the types on.
template <typename Function>
inline void with_types(vmddpm::DType dtype, Function f) {
  switch (dtype) {
    case vmddpm::DType::f64: return f(double(), double());
    case vmddpm::DType::f16: return f(float(), Half());
    case vmddpm::DType::bf16: return f(float(), BFloat16());
    default: return f(float(), float());
  }
}

// Calls f with the tensor's data as a pointer to its type.
template <typename Function>
inline auto with_type(const vmddpm::View& view, Function f) {
  switch (view.dtype) {
    case vmddpm::DType::f64: return f(static_cast<double*>(view.data));
    case vmddpm::DType::f16: return f(static_cast<Half*>(view.data));
    case vmddpm::DType::bf16: return f(static_cast<BFloat16*>(view.data));
    default: return f(static_cast<float*>(view.data));
  }
}

}  // namespace
