// SiLU, v sigmoid(v), and its slope, on registers.
#pragma once
#include "math.h"

namespace {

template <typename T>
VMDDPM_INLINE Vec<T> sigmoid_lanes(Vec<T> v) {
  const auto negative = v < Vec<T>{};
  const Vec<T> e = exp_lanes(select(negative, v, -v)), one = splat(T(1));
  return select(negative, e, one) / (e + T(1));
}

template <typename T>
VMDDPM_INLINE Vec<T> silu_lanes(Vec<T> v) {
  return v * sigmoid_lanes<T>(v);
}

template <typename T>
VMDDPM_INLINE Vec<T> silu_slope_lanes(Vec<T> v) {
  const Vec<T> sigmoid = sigmoid_lanes<T>(v);
  return sigmoid * (v * (T(1) - sigmoid) + T(1));
}

}  // namespace
