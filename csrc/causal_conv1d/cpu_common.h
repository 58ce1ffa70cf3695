// What the convolutions of both memory orders share.
#pragma once
#include "../common/runs.h"
#include "../common/silu.h"
#include "params.h"

namespace {

using vmddpm::ConvGradParams;
using vmddpm::ConvParams;
using vmddpm::ConvUpdateParams;
using vmddpm::View;

// dweight and dbias: sums over the steps, of a few at a time first, so that errors do not grow with their number.
template <typename T, int W>
struct Sums {
  static constexpr int64_t kTogether = 64;
  Vec<T> weight[W] = {}, bias{};

  VMDDPM_INLINE void add(Vec<T> dv, const Vec<T>* taps, int64_t index) {
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) part_weight[k] += dv * taps[k];
    part_bias += dv;
    if (index % kTogether == kTogether - 1) close();
  }

  VMDDPM_INLINE void close() {
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) {
      weight[k] += part_weight[k];
      part_weight[k] = Vec<T>{};
    }
    bias += part_bias;
    part_bias = Vec<T>{};
  }

 private:
  Vec<T> part_weight[W] = {}, part_bias{};
};

}  // namespace
