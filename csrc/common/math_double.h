// exp and log1p on registers of double. The errors of softplus and its slope are below 3 and 3.5 units in the last
// place, those of phi(v) of the zero-order hold and its derivative below 3.5 and 6.
#pragma once
#include "simd.h"

namespace {

using VecD = Vec<double>;
using VecU64 = Vec<uint64_t>;

// Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
constexpr double kRounderD = 6755399441055744.0;

// e^x for x <= 710; infinity above the largest double, subnormal results below the smallest normal one, NaN for NaN.
// e^r 2^n with r = x - n ln(2), where ln(2) has two parts, and products of the first with n are exact; e^r = 1 + r +
// r^2 q(r) with a minimax polynomial q. Error below 1.3 units in the last place on AVX-512, 1.6 with fused
// multiply-adds elsewhere and 1.8 without.
inline VecD exp_lanes(VecD x) {
  constexpr double log2e = 1.4426950408889634, ln2_high = 0.693147180559663, ln2_low = 2.8235290563031577e-13;
  x = at_least(x, -746.0);
#if defined(__AVX512F__) && !defined(VMDDPM_PLAIN_VECTORS)
  // n is rounded to 1/8: one instruction gives 2 to the floor of n, a table in one register the rest. Degree 5,
  // relative error 3e-18 before rounding.
  const VecD table = {1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096,
                      1.4142135623730951, 1.5422108254079407, 1.6817928305074292, 1.8340080864093424};
  const VecD shifted = x * log2e + kRounderD / 8;
  const VecD n = shifted - kRounderD / 8;
  const VecD r = (x - n * ln2_high) - n * ln2_low;
  const VecD power = (VecD)_mm512_permutexvar_pd((__m512i)shifted, (__m512d)table);
  VecD q = splat(1.984056590937139e-4);
  q = q * r + 1.3889780494649089e-3;
  q = q * r + 8.33333337111216e-3;
  q = q * r + 4.1666666570112164e-2;
  q = q * r + 1.6666666666663726e-1;
  q = q * r + 5.000000000000296e-1;
  return (VecD)_mm512_scalef_pd((__m512d)(power * (q * (r * r) + r) + power), (__m512d)n);
#else
  // n = 2 half is even, so that 2^n, which may be subnormal, is the square of a normal number. Degree 11, relative
  // error 1e-17 before rounding.
  const VecD shifted = x * (log2e / 2) + kRounderD;
  const VecD half = shifted - kRounderD;
  const VecD r = (x - half * (2 * ln2_high)) - half * (2 * ln2_low);
  // Separate even and odd powers halve the dependency chain.
  const VecD r2 = r * r;
  VecD odd = splat(1.5935653510063746e-10);
  odd = odd * r2 + 2.5055030684562378e-8;
  odd = odd * r2 + 2.7557300675978257e-6;
  odd = odd * r2 + 1.9841269892688216e-4;
  odd = odd * r2 + 8.333333333270052e-3;
  odd = odd * r2 + 1.6666666666666935e-1;
  VecD even = splat(2.1062268216632807e-9);
  even = even * r2 + 2.755615884475521e-7;
  even = even * r2 + 2.4801590826203756e-5;
  even = even * r2 + 1.3888888883584855e-3;
  even = even * r2 + 4.166666666670202e-2;
  even = even * r2 + 4.999999999999993e-1;
  const VecD root = bit_cast<VecD>(bit_cast<VecU64>(splat(1.0)) + (bit_cast<VecU64>(shifted) << 52));
  return (((odd * r + even) * r2 + r) + 1.0) * root * root;
#endif
}

// log(1 + y) for y in [0, 1]; NaN for NaN. With s = y / (2 + y) it is 2 atanh(s) = y - s (y - s^2 R(s^2)), exact to
// first order, so that small y keep their relative accuracy; minimax polynomial of degree 9, relative error 2e-18
// before rounding, below 1.3 units in the last place after it.
inline VecD log1p_unit(VecD y) {
  const VecD s = y / (y + 2.0), w = s * s;
  VecD R = splat(1.7009762595056652e-1);
  R = R * w + 8.344968380037171e-2;
  R = R * w + 1.210494560233177e-1;
  R = R * w + 1.3301121291357423e-1;
  R = R * w + 1.5386548399486813e-1;
  R = R * w + 1.8181744478738976e-1;
  R = R * w + 2.2222223953656753e-1;
  R = R * w + 2.8571428548117817e-1;
  R = R * w + 4.0000000000155117e-1;
  R = R * w + 6.666666666666631e-1;
  return y - s * (y - w * R);
}

}  // namespace
