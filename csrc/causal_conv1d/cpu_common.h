// Code for both memory orders of the convolution.
#pragma once
#include "../common/runs.h"
#include "../common/silu.h"
#include "params.h"

namespace {

using vmddpm::ConvGradParams;
using vmddpm::ConvParams;
using vmddpm::ConvUpdateParams;
using vmddpm::View;

// dweight and dbias: compensated sums over the steps (Kahan), whose errors do not grow with the number of steps.
template <typename T, int W>
struct Sums {
  Vec<T> weight[W] = {}, bias{};

  VMDDPM_INLINE void add(Vec<T> dv, const Vec<T>* taps) {
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) add_to(weight[k], lost_weight[k], dv * taps[k]);
    add_to(bias, lost_bias, dv);
  }

 private:
  static VMDDPM_INLINE void add_to(Vec<T>& total, Vec<T>& lost, Vec<T> value) {
    const Vec<T> corrected = value - lost, sum = total + corrected;
    lost = (sum - total) - corrected;
    total = sum;
  }

  Vec<T> lost_weight[W] = {}, lost_bias{};
};

}  // namespace
