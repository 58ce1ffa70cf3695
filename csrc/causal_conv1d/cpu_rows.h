// Contiguous channels: a register holds channels and advances along the steps.
#pragma once
#include "cpu_common.h"

namespace {

// The rows of channels of one sequence.
template <typename T, typename S>
struct InputRows {
  const S* x;
  const T* history;  // or null
  int64_t stride, channels, before;

  InputRows(const ConvParams& p, const S* data, int64_t batch)
      : x(data + batch * p.x.stride[0]),
        history(p.history ? static_cast<const T*>(p.history) + batch * (p.width - 1) * p.channels : nullptr),
        stride(p.x.stride[2]), channels(p.channels), before(p.width - 1) {}

  // Channels c, c + 1, ... of a step, which may be before the first.
  VMDDPM_INLINE Vec<T> at(int64_t step, int64_t c, int64_t count) const {
    if (step >= 0) return load_some<T>(x + step * stride + c, count);
    return history ? load_some<T>(history + (step + before) * channels + c, count) : Vec<T>{};
  }
};

// Weights, bias and the current taps of one register of channels.
template <typename T, int W>
struct Lanes {
  Vec<T> weight[W], bias, taps[W];

  template <typename S>
  VMDDPM_INLINE Lanes(const ConvParams& p, const T* by_tap, const InputRows<T, S>& rows, int64_t first, int64_t c,
                      int64_t count)
      : bias(p.bias ? load_some<T>(static_cast<const T*>(p.bias) + c, count) : Vec<T>{}) {
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) weight[k] = load_some<T>(by_tap + k * p.channels + c, count);
    VMDDPM_UNROLL
    for (int k = 1; k < W; ++k) taps[k] = rows.at(first - W + k, c, count);
  }

  VMDDPM_INLINE void advance(Vec<T> x) {
    VMDDPM_UNROLL
    for (int k = 0; k < W - 1; ++k) taps[k] = taps[k + 1];
    taps[W - 1] = x;
  }

  VMDDPM_INLINE Vec<T> weighted() const {
    Vec<T> v = bias;
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) v += weight[k] * taps[k];
    return v;
  }
};

// Computes steps first .. last of one sequence; `by_tap` is the weight (W, D).
template <typename T, typename S, int W>
void forward_rows(const ConvParams& p, const T* by_tap, int64_t batch, int64_t first, int64_t last) {
  const InputRows<T, S> rows(p, static_cast<const S*>(p.x.data), batch);
  S* const y = static_cast<S*>(p.y.data) + batch * p.y.stride[0];
  for (int64_t c = 0; c < p.channels; c += kLanes<T>) {
    const int64_t count = p.channels - c;
    Lanes<T, W> lanes(p, by_tap, rows, first, c, count);
    for (int64_t l = first; l < last; ++l) {
      lanes.advance(load_some<T>(rows.x + l * rows.stride + c, count));
      const Vec<T> v = lanes.weighted();
      store_some<T>(y + l * p.y.stride[2] + c, p.silu ? silu_lanes<T>(v) : v, count);
    }
  }
}

// The gradients of one register of channels, from channel c on, of one sequence.
template <typename T, typename S, int W>
void backward_rows(const ConvGradParams& g, const T* by_tap, int64_t batch, int64_t c) {
  const ConvParams& p = g.forward;
  const InputRows<T, S> rows(p, static_cast<const S*>(p.x.data), batch);
  const S* const dy = static_cast<const S*>(g.dy.data) + batch * g.dy.stride[0] + c;
  S* const dx = static_cast<S*>(g.dx.data) + batch * g.dx.stride[0] + c;
  T* const dhistory = g.dhistory ? static_cast<T*>(g.dhistory) + batch * (W - 1) * p.channels + c : nullptr;
  const int64_t count = p.channels - c;
  Lanes<T, W> lanes(p, by_tap, rows, 0, c, count);
  Vec<T> slopes[W] = {};  // slopes[k]: dv of the step k before
  Sums<T, W> sums;
  for (int64_t l = 0; l < p.length + W - 1; ++l) {
    VMDDPM_UNROLL
    for (int k = W - 1; k > 0; --k) slopes[k] = slopes[k - 1];
    Vec<T> dv{};
    if (l < p.length) {
      lanes.advance(load_some<T>(rows.x + l * rows.stride + c, count));
      dv = load_some<T>(dy + l * g.dy.stride[2], count);
      if (p.silu) dv = dv * silu_slope_lanes<T>(lanes.weighted());
      sums.add(dv, lanes.taps);
    }
    slopes[0] = dv;
    const int64_t step = l - (W - 1);  // all later steps that use it are done
    Vec<T> sum{};
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) sum += lanes.weight[k] * slopes[k];
    if (step >= 0) {
      store_some<T>(dx + step * g.dx.stride[2], sum, count);
    } else if (dhistory) {
      store_some<T>(dhistory + l * p.channels, sum, count);
    }
  }
  for (int64_t i = 0; i < kLanes<T> && i < count; ++i) {
    const int64_t at = batch * p.channels + c + i;
    for (int k = 0; k < W; ++k) static_cast<T*>(g.dweight)[at * W + k] = sums.weight[k][i];
    if (g.dbias) static_cast<T*>(g.dbias)[at] = sums.bias[i];
  }
}

}  // namespace
