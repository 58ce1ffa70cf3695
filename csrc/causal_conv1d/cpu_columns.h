// Contiguous steps: a register holds steps of one channel, and each tap is loaded one step further on.
#pragma once
#include "cpu_common.h"

namespace {

// A channel of one sequence.
template <typename T, typename S, int W>
struct Column {
  static constexpr int64_t kFirst = (W - 1 + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  const S* x;
  T weight[W], bias;
  T start[W - 1 + kFirst] = {};  // steps -(W - 1) .. kFirst: the registers that reach back before the first step

  Column(const ConvParams& p, int64_t batch, int64_t c)
      : x(static_cast<const S*>(p.x.data) + batch * p.x.stride[0] + c * p.x.stride[3]),
        bias(p.bias ? static_cast<const T*>(p.bias)[c] : T(0)) {
    for (int k = 0; k < W; ++k) weight[k] = static_cast<const T*>(p.weight)[c * W + k];
    if (p.history) {
      const T* const history = static_cast<const T*>(p.history) + batch * (W - 1) * p.channels + c;
      for (int i = 0; i < W - 1; ++i) start[i] = history[i * p.channels];
    }
    for (int64_t i = 0; i < kFirst && i < p.length; ++i) start[W - 1 + i] = static_cast<T>(widen(x[i]));
  }

  // The taps of steps l, l + 1, ...; l is a multiple of the lanes.
  VMDDPM_INLINE void taps_at(int64_t l, int64_t count, Vec<T>* taps) const {
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) {
      taps[k] = l < kFirst ? load(start + l + k) : load_some<T>(x + l - (W - 1) + k, count);
    }
  }

  VMDDPM_INLINE Vec<T> weighted(const Vec<T>* taps) const {
    Vec<T> v = splat(bias);
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) v += taps[k] * weight[k];
    return v;
  }
};

template <typename T, typename S, int W>
void forward_column(const ConvParams& p, int64_t batch, int64_t c) {
  const Column<T, S, W> column(p, batch, c);
  S* const y = static_cast<S*>(p.y.data) + batch * p.y.stride[0] + c * p.y.stride[3];
  for (int64_t l = 0; l < p.length; l += kLanes<T>) {
    const int64_t count = p.length - l;
    Vec<T> taps[W];
    column.taps_at(l, count, taps);
    const Vec<T> v = column.weighted(taps);
    store_some<T>(y + l, p.silu ? silu_lanes<T>(v) : v, count);
  }
}

template <typename T>
inline T sum_of(Vec<T> v) {
  double sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += static_cast<double>(v[i]);
  return static_cast<T>(sum);
}

// `slopes` has room for the steps, one register and W - 1 elements.
template <typename T, typename S, int W>
void backward_column(const ConvGradParams& g, int64_t batch, int64_t c, T* slopes) {
  const ConvParams& p = g.forward;
  const Column<T, S, W> column(p, batch, c);
  const S* const dy = static_cast<const S*>(g.dy.data) + batch * g.dy.stride[0] + c * g.dy.stride[3];
  S* const dx = static_cast<S*>(g.dx.data) + batch * g.dx.stride[0] + c * g.dx.stride[3];
  Sums<T, W> sums;
  for (int64_t l = 0; l < p.length; l += kLanes<T>) {
    const int64_t count = p.length - l;
    Vec<T> taps[W], dv = load_some<T>(dy + l, count);
    column.taps_at(l, count, taps);
    if (p.silu) dv = dv * silu_slope_lanes<T>(column.weighted(taps));
    store(slopes + l, dv);
    sums.add(dv, taps);
  }
  for (int64_t i = p.length; i < p.length + W - 1 + kLanes<T>; ++i) slopes[i] = T(0);
  for (int64_t l = 0; l < p.length; l += kLanes<T>) {
    Vec<T> sum{};
    VMDDPM_UNROLL
    for (int k = 0; k < W; ++k) sum += load(slopes + l + W - 1 - k) * column.weight[k];
    store_some<T>(dx + l, sum, p.length - l);
  }
  if (g.dhistory) {
    T* const dhistory = static_cast<T*>(g.dhistory) + batch * (W - 1) * p.channels + c;
    for (int i = 0; i < W - 1; ++i) {
      T sum{};
      for (int k = 0; k <= i; ++k) sum += column.weight[k] * slopes[i - k];
      dhistory[i * p.channels] = sum;
    }
  }
  const int64_t at = batch * p.channels + c;
  for (int k = 0; k < W; ++k) static_cast<T*>(g.dweight)[at * W + k] = sum_of<T>(sums.weight[k]);
  if (g.dbias) static_cast<T*>(g.dbias)[at] = sum_of<T>(sums.bias);
}

}  // namespace
