// exp, softplus and the zero-order-hold weight on a GPU, for one value of the accumulation's type. float uses the
// special-function unit in base 2, double the math library.
#pragma once
#include <gpu.h>

#include <cmath>

namespace vmddpm {
namespace gpu {

// The decay e^(delta A) is decay(v) with v = delta * rate(A). For float the rate contains the factor log2(e), so that a
// step costs one product and one instruction of the special-function unit.
VMDDPM_DEVICE float rate(float A) { return A * 1.44269504f; }
VMDDPM_DEVICE double rate(double A) { return A; }
VMDDPM_DEVICE float decay(float v) { return exp2_unit(v); }
VMDDPM_DEVICE double decay(double v) { return ::exp(v); }

// v * kRateUnit = delta * A.
template <typename T>
constexpr T kRateUnit = T(1);
template <>
constexpr float kRateUnit<float> = 0.693147181f;

// e^-m for m >= 0. The product with log2(e) has two parts, because its rounding error alone would be several units in
// the last place.
VMDDPM_DEVICE float exp_negative(float m) {
  constexpr float log2e = 1.44269502f, log2e_rest = 1.92596303e-8f;
  const float high = m * -log2e;
  const float low = fmaf(m, log2e_rest, fmaf(m, log2e, high));
  const float e = exp2_unit(high);
  return high > -120.0f ? fmaf(e, low * -0.693147181f, e) : e;  // otherwise `low` is no correction
}
VMDDPM_DEVICE double exp_negative(double m) { return ::exp(-m); }

// log(1 + y) for y in [0, 1] through 2 atanh(y / (2 + y)), so that small y keep their relative accuracy.
VMDDPM_DEVICE float log1p_unit(float y) {
  const float s = y * reciprocal_unit(y + 2.0f), s2 = s * s;
  float q = fmaf(0.1400599457809141f, s2, 0.14000902473850074f);
  q = fmaf(q, s2, 0.2001076361974317f);
  q = fmaf(q, s2, 0.33333208143249743f);
  return 2.0f * fmaf(s, s2 * q, s);
}
VMDDPM_DEVICE double log1p_unit(double y) { return ::log1p(y); }

// log(1 + e^x), or x above 20 (PyTorch's threshold).
template <typename T>
VMDDPM_DEVICE T softplus(T x) {
  const T value = (x > T(0) ? x : T(0)) + log1p_unit(exp_negative(std::fabs(x)));
  return x > T(20) ? x : value;
}

// The derivative of softplus at the value y: 1 - e^-y, from its Taylor series if the difference would cancel.
VMDDPM_DEVICE float softplus_slope(float y) {
  float series = fmaf(y, -1.0f / 40320.0f, 1.0f / 5040.0f);
  series = fmaf(series, -y, 1.0f / 720.0f);
  series = fmaf(series, -y, 1.0f / 120.0f);
  series = fmaf(series, -y, 1.0f / 24.0f);
  series = fmaf(series, -y, 1.0f / 6.0f);
  series = fmaf(series, -y, 0.5f);
  series = fmaf(series, -y, 1.0f);
  series *= y;
  // Compute both and select: a branch would diverge within warps.
  const float difference = 1.0f - exp_negative(y);
  return y < 0.5f ? series : difference;
}
VMDDPM_DEVICE double softplus_slope(double y) { return y > 20.0 ? 1.0 : -::expm1(-y); }

// phi(v) = (e^v - 1) / v, the zero-order-hold weight of Eq. 6, and its derivative (e^v - phi) / v, given e^v.
// Below |v| = 1 both use their Taylor series, because the quotients would cancel.
template <typename T>
VMDDPM_DEVICE void zoh_weight(T v, T exp_v, T& phi, T& dphi) {
  constexpr int kTerms = sizeof(T) == 4 ? 11 : 20;
  T series = T(1), dseries = T(0);
#pragma unroll
  for (int k = kTerms; k >= 1; --k) {
    const T inverse = T(1) / T(k + 1);
    dseries = (series + v * dseries) * inverse;
    series = T(1) + v * series * inverse;
  }
  const bool small = v < T(1) && v > T(-1);
  const T over_v = T(1) / (small ? T(1) : v);
  const T quotient = (exp_v - T(1)) * over_v;
  phi = small ? series : quotient;
  dphi = small ? dseries : (exp_v - quotient) * over_v;
}

}  // namespace gpu
}  // namespace vmddpm
