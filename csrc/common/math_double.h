// exp and log1p on registers of double. With them softplus and its slope err by less than 2 and 2.5 units in the last
// place, phi(v) of the zero-order hold and its derivative by less than 2.5 and 6.
#pragma once
#include "simd.h"

namespace {

using VecD = Vec<double>;
using VecU64 = Vec<uint64_t>;

// Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
constexpr double kRounderD = 6755399441055744.0;

// e^x for any x: infinity above the largest double, gradually 0 below the smallest normal one; NaN stays. As e^r 2^n
// with r = x - n ln(2), where ln(2) is taken in two parts, the first exact in products with n; e^r = 1 + r + r^2 q(r),
// where q is a minimax polynomial. Error below 1.3 units in the last place: a table entry and two roundings. The bounds of
// x keep n in range and change no result.
inline VecD exp_lanes(VecD x) {
  constexpr double log2e = 1.4426950408889634, ln2_high = 0.693147180559663, ln2_low = 2.8235290563031577e-13;
  x = at_most(at_least(x, -746.0), 710.0);
#if defined(__AVX512F__) && !defined(VMDDPM_PLAIN_VECTORS)
  // n to the nearest 8th, 2^n to its floor being an instruction and the rest a table in one register: degree 5, relative
  // error 3e-18 before rounding.
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
  // Degree 9, relative error 4e-18 before rounding.
  const VecD shifted = x * log2e + kRounderD;
  const VecD n = shifted - kRounderD;
  const VecD r = (x - n * ln2_high) - n * ln2_low;
  VecD q = splat(2.5000072292151145e-8);
  q = q * r + 2.763023391495877e-7;
  q = q * r + 2.755758626640849e-6;
  q = q * r + 2.4801493136197254e-5;
  q = q * r + 1.9841269506779664e-4;
  q = q * r + 1.388888894359769e-3;
  q = q * r + 8.333333333494333e-3;
  q = q * r + 4.1666666666530267e-2;
  q = q * r + 1.6666666666666413e-1;
  q = q * r + 5.000000000000011e-1;
  // 2^n in two factors of about half of n, as it need not be a normal number itself.
  const VecU64 one = bit_cast<VecU64>(splat(1.0)), whole = bit_cast<VecU64>(shifted);
  const VecU64 half = bit_cast<VecU64>(n * 0.5 + kRounderD);
  const VecD first = bit_cast<VecD>(one + (half << 52)), second = bit_cast<VecD>(one + ((whole - half) << 52));
  return ((q * (r * r) + r) + 1.0) * first * second;
#endif
}

// log(1 + y) for y in [0, 1]; NaN stays. With s = y / (2 + y) it is 2 atanh(s) = y - s (y - s^2 R(s^2)), exact to first
// order, so that small y keep their relative accuracy; minimax polynomial of degree 9, relative error 2e-18 before
// rounding, below 1.3 units in the last place after it.
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
