// exp2, softplus and the zero-order-hold weight on registers of channels.
// float: polynomials, relative error below 2e-7. double: the C library lane by lane.
#pragma once
#include <math.h>

#include "simd.h"

namespace {

using VecF = Vec<float>;
using VecD = Vec<double>;
using VecI = Vec<int32_t>;

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// 2^x. Minimax polynomial of degree 6 for 2^f on [-1/2, 1/2] with p(0) = 1 exactly, so that a decay of nothing stays
// 1 over any number of steps; relative error 1.9e-8 before rounding. 0 below -127, infinity from 128, NaN stays.
inline VecF exp2_lanes(VecF x) {
  x = x < -127.0f ? VecF{} - 127.0f : x;
  x = x > 128.0f ? VecF{} + 128.0f : x;
  const VecF magic = VecF{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const VecF shifted = x + magic;
  const VecF f = x - (shifted - magic);
  VecF p = VecF{} + 1.6938267707753902e-4f;
  p = p * f + 1.343534535611432e-3f;
  p = p * f + 9.612675523606843e-3f;
  p = p * f + 5.550205082364933e-2f;
  p = p * f + 2.402269593626226e-1f;
  p = p * f + 6.93147302162471e-1f;
  p = p * f + 1.0f;
  return bit_cast<VecF>(bit_cast<VecI>(p) + (bit_cast<VecI>(shifted) << 23));
}

inline VecD exp2_lanes(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp2(x[i]);
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
  const V e = exp2_lanes(magnitude * T(-kLog2e));  // e^-|x|
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
