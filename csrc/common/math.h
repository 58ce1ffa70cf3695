// exp, softplus and the zero-order-hold weight on registers of channels.
// float: polynomials, relative error below 2e-7. double: math_double.h.
#pragma once
#include <math.h>

#include "math_double.h"

namespace {

using VecF = Vec<float>;
using VecU = Vec<uint32_t>;

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
constexpr float kRounder = 12582912.0f;

// fraction * 2^n, where shifted = kRounder + n: adds n to the exponent bits.
inline VecF times_power_of_two(VecF fraction, VecF shifted) {
  return bit_cast<VecF>(bit_cast<VecU>(fraction) + (bit_cast<VecU>(shifted) << 23));
}

// The decay of a step, e^(delta A), is computed as 2^(delta A'), where A' = A log2(e) was rounded before. For negative
// exponents this costs no accuracy: large exponents, with large rounding errors, give small decays.
template <typename T>
constexpr T kDecayScale = T(1);
template <>
constexpr float kDecayScale<float> = 1.44269504f;

// 2^v for v < 128; 0 for very negative v, NaN for NaN. Value and slope are exact at 0, so that a decay with v = 0 is 1
// and a slow decay keeps its rate over any number of steps.
#if defined(__AVX512DQ__) && !defined(VMDDPM_PLAIN_VECTORS)
// A table in one register for v rounded to 1/16, and a polynomial of degree 3 for the rest, |r| <= 1/32; relative error
// 5e-9 before rounding. The shifted bits of v add the exponent and the sixteenths to a table entry, which is corrected
// for the latter.
inline VecF power_of_two(VecU shifted, VecF r) {
  const VecU table = {
      0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
      0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
  const VecU entry = (VecU)_mm512_permutexvar_epi32((__m512i)shifted, (__m512i)table);
  const VecF power = bit_cast<VecF>(entry + (shifted << 19));
  VecF p = splat(5.5504109e-2f);
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  return power * (p * r) + power;
}

inline VecF decay_lanes(VecF v) {
  v = at_least(v, -127.0f);
  const VecF r = (VecF)_mm512_reduce_ps((__m512)v, 4 << 4);
  return power_of_two(bit_cast<VecU>(v + kRounder / 16), r);
}
#else
// Minimax polynomial of degree 6 on [-1/2, 1/2]; relative error 3e-9 before rounding.
inline VecF decay_lanes(VecF v) {
  v = at_least(v, -127.0f);
  const VecF shifted = v + kRounder;
  const VecF r = v - (shifted - kRounder);
  VecF p = splat(1.5324315e-4f);
  p = p * r + 1.3390959e-3f;
  p = p * r + 9.618518e-3f;
  p = p * r + 5.5503596e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return times_power_of_two(p, shifted);
}
#endif

// e^x for x < 88; 0 for very negative x, NaN for NaN.
#if defined(__AVX512DQ__) && !defined(VMDDPM_PLAIN_VECTORS)
// Uses power_of_two. The product x log2(e) is not rounded, and the rounding error of log2(e) is added to the rest.
inline VecF exp_lanes(VecF x) {
  const __m512 log2e = _mm512_set1_ps(1.44269504f), log2e_rest = _mm512_set1_ps(1.92596303e-8f);
  const __m512 rounder = _mm512_set1_ps(kRounder / 16), v = (__m512)at_least(x, -88.02f);
  const __m512 shifted = _mm512_fmadd_ps(v, log2e, rounder);
  const __m512 rest = _mm512_fmsub_ps(v, log2e, _mm512_sub_ps(shifted, rounder));
  return power_of_two((VecU)shifted, (VecF)_mm512_fmadd_ps(v, log2e_rest, rest));
}
#else
// e^r 2^n with r = x - n ln(2), where ln(2) has two parts, and products of the first with n are exact. Minimax
// polynomial of degree 6, relative error 3e-9 before rounding.
inline VecF exp_lanes(VecF x) {
  constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  x = at_least(x, -88.02f);
  const VecF shifted = x * log2e + kRounder;
  const VecF n = shifted - kRounder;
  const VecF r = (x - n * ln2_high) - n * ln2_low;
  // Separate even and odd powers halve the dependency chain.
  const VecF r2 = r * r;
  const VecF even = (r2 * 1.3814542e-3f + 4.1668391e-2f) * r2 + 4.99999934e-1f;
  const VecF odd = r2 * 8.3687451e-3f + 1.66665204e-1f;
  return times_power_of_two((odd * r + even) * r2 + (r + 1.0f), shifted);
}
#endif

// e^x for any x; infinity for large x. A large x is halved, because 2^128 is not a float.
inline VecF growth_lanes(VecF x) {
  const auto large = splat(64.0f) < x;
  const VecF e = exp_lanes(select(large, x * 0.5f, x));
  return select(splat(176.0f) < x, splat(HUGE_VALF), select(large, e * e, e));
}

inline VecD growth_lanes(VecD x) { return exp_lanes(at_most(x, 710.0)); }
inline VecD decay_lanes(VecD v) { return growth_lanes(v); }

// log(1 + y) for y in [0, 1]: minimax polynomial, exact to first order, so that small y keep their relative accuracy;
// relative error 3.3e-8 before rounding.
inline VecF log1p_unit(VecF y) {
  const VecF y2 = y * y;
  const VecF even = ((y2 * -3.00658e-2f - 1.3753803e-1f) * y2 - 2.4857163e-1f) * y2 - 4.9999648e-1f;
  const VecF odd = ((y2 * 5.364826e-3f + 7.9204544e-2f) * y2 + 1.9153656e-1f) * y2 + 3.3321324e-1f;
  return (odd * y + even) * y2 + y;
}

// softplus(x) = log(1 + e^x), or x above PyTorch's threshold of 20, where both are equal as floats. Stores the
// derivative in `slope` if it is not null.
template <typename T>
inline Vec<T> softplus_by_exp(Vec<T> x, Vec<T>* slope) {
  using V = Vec<T>;
  constexpr bool kTellsApart = sizeof(T) > 4;
  const V zero{}, one = splat(T(1)), threshold = splat(T(20));
  const auto negative = x < zero;
  const V e = exp_lanes(select(negative, x, -x));
  if (slope) {
    const V sigmoid = select(negative, e, one) / (e + T(1));
    *slope = kTellsApart ? select(threshold < x, one, sigmoid) : sigmoid;
  }
  const V sum = select(negative, zero, x) + log1p_unit(e);
  return kTellsApart ? select(threshold < x, x, sum) : sum;
}

template <typename T>
inline Vec<T> softplus_lanes(Vec<T> x, Vec<T>* slope = nullptr) {
  return softplus_by_exp<T>(x, slope);
}

#if defined(__AVX512DQ__) && !defined(VMDDPM_PLAIN_VECTORS)
// With t = |x|: softplus(x) = max(x, 0) + log(1 + e^-t), and its slope is 1 / (1 + e^t), or one minus that if x > 0. Up
// to t = 15.5 both are polynomials of degree 6 around the nearest integer, with one register of coefficients for each
// power, the highest first; relative errors 2.4e-8 and 5e-8 before rounding.
constexpr float kLogarithm[7][16] = {
    {2.9878278e-4f, -6.914134e-5f, -1.1748035e-4f, -7.043848e-6f, 1.2255003e-5f, 7.362924e-6f, 3.1469533e-6f,
     1.2197956e-6f, 4.5728396e-7f, 1.6938914e-7f, 6.247264e-8f, 2.300378e-8f, 8.465512e-9f, 3.1146796e-9f,
     1.1458796e-9f, 4.2155274e-10f},
    {4.4841134e-5f, 1.0050862e-3f, 1.8208034e-4f, -1.5257868e-4f, -1.1187913e-4f, -5.064261e-5f, -2.0026711e-5f,
     -7.5623416e-6f, -2.8087131e-6f, -1.0368942e-6f, -3.8194358e-7f, -1.4057575e-7f, -5.172394e-8f, -1.9029393e-8f,
     -7.0006876e-9f, -2.5754314e-9f},
    {-5.2258326e-3f, -1.4710719e-3f, 1.6177981e-3f, 1.3719626e-3f, 6.579908e-4f, 2.6598634e-4f, 1.0126528e-4f,
     3.7724658e-5f, 1.3942364e-5f, 5.137826e-6f, 1.8912814e-6f, 6.959234e-7f, 2.5603757e-7f, 9.419389e-8f,
     3.465239e-8f, 1.2747956e-8f},
    {3.3488543e-6f, -1.5139992e-2f, -1.3328156e-2f, -6.815687e-3f, -2.8378833e-3f, -1.093136e-3f, -4.0903006e-4f,
     -1.514181e-4f, -5.5832028e-5f, -2.0556865e-5f, -7.564806e-6f, -2.7832557e-6f, -1.0239457e-6f, -3.7669446e-7f,
     -1.3857894e-7f, -5.0980447e-8f},
    {1.249997e-1f, 9.8305844e-2f, 5.2496884e-2f, 2.2588352e-2f, 8.831351e-3f, 3.324025e-3f, 1.2332532e-3f,
     4.5510998e-4f, 1.6761861e-4f, 6.1689585e-5f, 2.2697872e-5f, 8.350559e-6f, 3.0720641e-6f, 1.130158e-6f,
     4.1576308e-7f, 1.5295085e-7f},
    {-5.0e-1f, -2.6894152e-1f, -1.1920289e-1f, -4.742586e-2f, -1.798621e-2f, -6.6928524e-3f, -2.4726237e-3f,
     -9.1105147e-4f, -3.3535023e-4f, -1.2339461e-4f, -4.5397883e-5f, -1.6701428e-5f, -6.1441765e-6f, -2.2603251e-6f,
     -8.3152827e-7f, -3.0590232e-7f},
    {6.931472e-1f, 3.132617e-1f, 1.2692802e-1f, 4.8587352e-2f, 1.8149927e-2f, 6.7153485e-3f, 2.4756852e-3f,
     9.114665e-4f, 3.3540637e-4f, 1.2340219e-4f, 4.53989e-5f, 1.6701562e-5f, 6.1441933e-6f, 2.260327e-6f,
     8.315284e-7f, 3.059023e-7f},
};
constexpr float kSlope[7][16] = {
    {3.387625e-4f, 3.7516063e-4f, -1.415167e-4f, -5.4690317e-5f, 1.0857322e-6f, 5.5410014e-6f, 2.8831892e-6f,
     1.18321e-6f, 4.5228774e-7f, 1.6871071e-7f, 6.2380714e-8f, 2.2991333e-8f, 8.463828e-9f, 3.1144516e-9f,
     1.1458487e-9f, 4.2154857e-10f},
    {-2.3070956e-3f, 3.7877733e-4f, 7.1897026e-4f, 4.8214304e-5f, -7.357941e-5f, -4.4773453e-5f, -1.919546e-5f,
     -7.447949e-6f, -2.7931364e-6f, -1.0347813e-6f, -3.816574e-7f, -1.4053701e-7f, -5.1718697e-8f, -1.9028684e-8f,
     -7.0005917e-9f, -2.5754183e-9f},
    {7.481593e-5f, -5.1409346e-3f, -8.6690555e-4f, 7.7965955e-4f, 5.590648e-4f, 2.5151347e-4f, 9.924952e-5f,
     3.744895e-5f, 1.3904906e-5f, 5.1327493e-6f, 1.890594e-6f, 6.9583035e-7f, 2.5602498e-7f, 9.419218e-8f,
     3.465216e-8f, 1.2747924e-8f},
    {2.0820336e-2f, 5.893251e-3f, -6.474691e-3f, -5.489326e-3f, -2.6319525e-3f, -1.0637975e-3f, -4.049833e-4f,
     -1.5086659e-4f, -5.5757195e-5f, -2.0546728e-5f, -7.5634334e-6f, -2.78307e-6f, -1.0239206e-6f, -3.7669105e-7f,
     -1.3857847e-7f, -5.0980386e-8f},
    {1.0849252e-6f, 4.5428444e-2f, 3.998129e-2f, 2.0445839e-2f, 8.513674e-3f, 3.279532e-3f, 1.2271546e-3f,
     4.5428076e-4f, 1.6750618e-4f, 6.1674364e-5f, 2.2695811e-5f, 8.350281e-6f, 3.0720264e-6f, 1.1301529e-6f,
     4.157624e-7f, 1.5295076e-7f},
    {-2.5000003e-1f, -1.966121e-1f, -1.049936e-1f, -4.5176636e-2f, -1.7662702e-2f, -6.648057e-3f, -2.4665098e-3f,
     -9.102214e-4f, -3.3523777e-4f, -1.2337939e-4f, -4.5395824e-5f, -1.6701148e-5f, -6.1441388e-6f, -2.26032e-6f,
     -8.315276e-7f, -3.0590223e-7f},
    {5.0e-1f, 2.6894143e-1f, 1.1920292e-1f, 4.7425874e-2f, 1.798621e-2f, 6.692851e-3f, 2.4726233e-3f, 9.110512e-4f,
     3.3535014e-4f, 1.2339458e-4f, 4.539787e-5f, 1.6701422e-5f, 6.1441747e-6f, 2.2603242e-6f, 8.3152804e-7f,
     3.0590223e-7f},
};

template <>
inline VecF softplus_lanes<float>(VecF x, VecF* slope) {
  const VecF t = bit_cast<VecF>(bit_cast<VecU>(x) & 0x7fffffffu);
  const bool far = _mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(15.5f), _CMP_NLT_UQ) != 0;  // or NaN
  if (__builtin_expect(far, false)) return softplus_by_exp<float>(x, slope);
  const __m512i nearest = (__m512i)(t + kRounder);
  const VecF r = (VecF)_mm512_reduce_ps((__m512)t, 0);
  const auto polynomial = [&](const float(&powers)[7][16]) {
    const auto power = [&](int i) { return (VecF)_mm512_permutexvar_ps(nearest, _mm512_loadu_ps(powers[i])); };
    VecF p = power(0);
    VMDDPM_UNROLL
    for (int i = 1; i < 7; ++i) p = p * r + power(i);
    return p;
  };
  if (slope) {
    const VecF below = polynomial(kSlope);
    *slope = select(x < VecF{}, below, 1.0f - below);
  }
  return at_least(x, 0.0f) + polynomial(kLogarithm);
}
#endif

// phi(v) = (e^v - 1) / v, the zero-order-hold weight of Eq. 6, and its derivative (e^v - phi) / v, given e^v.
// Below |v| = 1 both use the Taylor series phi = sum v^k / (k + 1)!, because the quotients would cancel.
template <typename T>
inline void zoh_lanes(Vec<T> v, Vec<T> exp_v, Vec<T>& phi, Vec<T>& dphi) {
  using V = Vec<T>;
  constexpr double kInverseFactorial[] = {
      1.0, 5.0e-1, 1.6666666666666666e-1, 4.1666666666666664e-2, 8.3333333333333332e-3, 1.3888888888888889e-3,
      1.9841269841269841e-4, 2.4801587301587302e-5, 2.7557319223985893e-6, 2.7557319223985888e-7,
      2.5052108385441720e-8, 2.0876756987868100e-9, 1.6059043836821613e-10, 1.1470745597729725e-11,
      7.6471637318198164e-13, 4.7794773323873853e-14, 2.8114572543455206e-15, 1.5619206968586225e-16,
      8.2206352466243295e-18, 4.1103176233121648e-19};
  constexpr int kTerms = sizeof(T) == 4 ? 12 : 20;
  V series = splat(T(kInverseFactorial[kTerms - 1])), dseries{};
  VMDDPM_UNROLL
  for (int k = kTerms - 2; k >= 0; --k) {
    dseries = dseries * v + series;
    series = series * v + T(kInverseFactorial[k]);
  }
  const V zero{}, one = splat(T(1));
  const auto small = select(v < zero, -v, v) < one;
  const V safe = select(small, one, v);
  const V quotient = (exp_v - T(1)) / safe;
  phi = select(small, series, quotient);
  dphi = select(small, dseries, (exp_v - quotient) / safe);
}

}  // namespace
