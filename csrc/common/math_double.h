// exp and log1p on registers of double, within a unit or two in the last place.
#pragma once
#include "simd.h"

namespace {

using VecD = Vec<double>;
using VecU64 = Vec<uint64_t>;

// p 2^n, n being what `shifted` holds beyond kRounderD, for p about 1 and -1076 <= n <= 1024: infinity above the largest
// double, gradually 0 below the smallest normal one.
constexpr double kRounderD = 6755399441055744.0;  // 1.5 * 2^52: kRounder of a double

#if defined(__AVX512F__) && !defined(VMDDPM_PLAIN_VECTORS)
inline VecD scaled(VecD p, VecD shifted) { return (VecD)_mm512_scalef_pd((__m512d)p, (__m512d)(shifted - kRounderD)); }
#else
// In two steps of about half of n, as 2^n itself need not be a normal number.
inline VecD scaled(VecD p, VecD shifted) {
  const VecU64 n = bit_cast<VecU64>(shifted), half = bit_cast<VecU64>((shifted - kRounderD) * 0.5 + kRounderD);
  const VecU64 one = bit_cast<VecU64>(splat(1.0));
  return p * bit_cast<VecD>(one + (half << 52)) * bit_cast<VecD>(one + ((n - half) << 52));
}
#endif

// e^x for any x; NaN stays. As e^r 2^n with r = x - n ln(2), where ln(2) is taken in two parts, the first exact in products
// with n: e^r = 1 + r + r^2 q(r), where q is a minimax polynomial of degree 9, relative error 4e-18 before rounding and
// below 1 unit in the last place after it; a result that is no normal number is rounded once more.
inline VecD exp_lanes(VecD x) {
  constexpr double log2e = 1.4426950408889634, ln2_high = 0.693147180559663, ln2_low = 2.8235290563031577e-13;
  x = at_most(at_least(x, -746.0), 710.0);
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
  return scaled((q * (r * r) + r) + 1.0, shifted);
}

// log(1 + y) for y in [0, 1]; NaN stays. With s = y / (2 + y) it is 2 atanh(s) = y - s (y - s^2 R(s^2)), which lets y
// through exactly where it is small; minimax polynomial of degree 9, relative error 2e-18 before rounding and below 1 unit
// in the last place after it.
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
