// IEEE half precision and bfloat16 as bits; conversions round once, to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace vmddpm {
namespace gpu {

struct Half {
  static constexpr int kMantissa = 10, kExponent = 5;
  uint16_t bits;
};

struct BFloat16 {
  static constexpr int kMantissa = 7, kExponent = 8;
  uint16_t bits;
};

}  // namespace gpu

namespace emulation {

template <typename Format>
inline float widened(uint16_t bits) {
  constexpr int bias = (1 << (Format::kExponent - 1)) - 1, infinite = (1 << Format::kExponent) - 1;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> Format::kMantissa & infinite;
  const uint32_t mantissa = bits & ((1u << Format::kMantissa) - 1);
  uint32_t magnitude = mantissa << (23 - Format::kMantissa);
  float value;
  if (exponent == infinite) {
    magnitude |= 0x7f800000u;
  } else if (exponent != 0) {
    magnitude |= (exponent + 127 - bias) << 23;
  } else if constexpr (Format::kExponent < 8) {
    // A subnormal of a format with fewer exponents is a normal float: its mantissa times the smallest subnormal.
    value = static_cast<float>(mantissa) / static_cast<float>(1 << (bias - 1 + Format::kMantissa));
    std::memcpy(&magnitude, &value, 4);
  }
  magnitude |= sign;
  std::memcpy(&value, &magnitude, 4);
  return value;
}

// From double, which holds every float: one rounding for both.
template <typename Format>
inline uint16_t narrowed(double value) {
  constexpr int bias = (1 << (Format::kExponent - 1)) - 1;
  constexpr uint16_t infinity = ((1 << Format::kExponent) - 1) << Format::kMantissa;
  uint64_t bits;
  std::memcpy(&bits, &value, 8);
  const uint16_t sign = static_cast<uint16_t>(bits >> 48 & 0x8000);
  const uint64_t magnitude = bits & 0x7fffffffffffffffull;
  if (magnitude > 0x7ff0000000000000ull) return 0x7fff;  // the NaN of CUDA's conversions
  const int exponent = static_cast<int>(magnitude >> 52) - 1023;
  if (exponent > bias) return sign | infinity;
  const int below_normal = exponent < 1 - bias ? 1 - bias - exponent : 0;
  const int dropped = 52 - Format::kMantissa + below_normal;
  if (dropped > 53) return sign;  // less than half of the smallest subnormal; zero, and subnormal doubles
  const uint64_t mantissa = (magnitude & 0xfffffffffffffull) | 0x10000000000000ull;
  const uint64_t half = 1ull << (dropped - 1), rest = mantissa & (2 * half - 1);
  uint64_t kept = mantissa >> dropped;
  kept += rest > half || (rest == half && (kept & 1));
  // The leading bit of a normal number adds one to its exponent field, as does a carry out of the mantissa.
  const uint64_t field = below_normal ? 0 : static_cast<uint64_t>(exponent + bias - 1);
  return static_cast<uint16_t>(sign | ((field << Format::kMantissa) + kept));
}

}  // namespace emulation
}  // namespace vmddpm
