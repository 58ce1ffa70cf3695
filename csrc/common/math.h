// exp, softplus and the zero-order-hold weight on registers of channels.
// float: polynomials, relative error below 2e-7. double: the C library lane by lane.
#pragma once
#include <math.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace {

using VecF = Vec<float>;
using VecD = Vec<double>;
using VecI = Vec<int32_t>;

// e^r for |r| <= ln(2) / 2: minimax polynomial of degree 6 with value and slope exactly 1 at 0, so that a decay of nothing
// stays 1 over any number of steps; relative error 3e-9 before rounding.
inline VecF exp_fraction(VecF r) {
  VecF p = VecF{} + 1.3814542e-3f;
  p = p * r + 8.3687451e-3f;
  p = p * r + 4.1668391e-2f;
  p = p * r + 1.66665204e-1f;
  p = p * r + 4.99999934e-1f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}

// e^x = 2^n e^r with r = x - n ln(2), where ln(2) is taken in two parts, the first exact in products with n.
// 0 far below, infinity far above, NaN stays.
inline VecF exp_lanes(VecF x) {
  constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
#if defined(__AVX512F__)
  const VecF n = (VecF)_mm512_roundscale_ps((__m512)(x * log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const VecF p = exp_fraction((x - n * ln2_high) - n * ln2_low);
  return (VecF)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const VecF magic = VecF{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const VecF shifted = x * log2e + magic;
  const VecF n = shifted - magic;
  const VecF p = exp_fraction((x - n * ln2_high) - n * ln2_low);
  VecF result = bit_cast<VecF>(bit_cast<VecI>(p) + (bit_cast<VecI>(shifted) << 23));
  result = x < -87.3f ? VecF{} : result;
  return x > 88.7f ? VecF{} + __builtin_inff() : result;
#endif
}

inline VecD exp_lanes(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

// log(1 + y) for y in [0, 1] through 2 atanh(y / (2 + y)), so that small y keep their relative accuracy.
inline VecF log1p_unit(VecF y) {
  const VecF s = y / (y + 2.0f);
  const VecF s2 = s * s;
  VecF q = VecF{} + 0.1400599457809141f;
  q = q * s2 + 0.14000902473850074f;
  q = q * s2 + 0.2001076361974317f;
  q = q * s2 + 0.33333208143249743f;
  return 2.0f * (s + s * (s2 * q));
}

inline VecD log1p_unit(VecD y) {
  for (int i = 0; i < kLanes<double>; ++i) y[i] = ::log1p(y[i]);
  return y;
}

// softplus(x) = log(1 + e^x), x itself above 20 (PyTorch's threshold), and its derivative.
template <typename T>
inline void softplus_lanes(Vec<T> x, Vec<T>& value, Vec<T>& derivative) {
  using V = Vec<T>;
  const V magnitude = x < T(0) ? -x : x;
  const V e = exp_lanes(-magnitude);
  const V positive = x < T(0) ? V{} : x;
  const V one = V{} + T(1);
  const V sigmoid = (x < T(0) ? e : one) / (e + T(1));
  value = x > T(20) ? x : positive + log1p_unit(e);
  derivative = x > T(20) ? one : sigmoid;
}

// phi(v) = (e^v - 1) / v, the zero-order-hold weight of Eq. 6, and its derivative (e^v - phi) / v, given e^v.
// Below |v| = 1 both come from their Taylor series, as the quotients would cancel.
template <typename T>
inline void zoh_lanes(Vec<T> v, Vec<T> exp_v, Vec<T>& phi, Vec<T>& dphi) {
  using V = Vec<T>;
  constexpr int kTerms = sizeof(T) == 4 ? 11 : 20;
  V series = V{} + T(1), dseries = V{};
  // phi = sum v^k / (k+1)!; Horner from the last term, carrying the derivative along.
  for (int k = kTerms; k >= 1; --k) {
    dseries = (series + v * dseries) / T(k + 1);
    series = T(1) + v * series / T(k + 1);
  }
  const V magnitude = v < T(0) ? -v : v;
  const V safe = magnitude < T(1) ? V{} + T(1) : v;
  const V quotient = (exp_v - T(1)) / safe;
  phi = magnitude < T(1) ? series : quotient;
  dphi = magnitude < T(1) ? dseries : (exp_v - quotient) / safe;
}

}  // namespace
