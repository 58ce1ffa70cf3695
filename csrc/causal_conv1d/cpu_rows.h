// Channels side by side: a register holds channels, and a step reads the rows of the steps before it again.
#pragma once
#include "cpu_common.h"

namespace {

// Of one sequence: where rows of channels lie.
template <typename T, typename S>
struct Rows {
  const S* x;
  const T* history;  // or null
  int64_t stride, channels, before;

  Rows(const ConvParams& p, const S* data, int64_t batch)
      : x(data + batch * p.x.stride[0]),
        history(p.history ? static_cast<const T*>(p.history) + batch * (p.width - 1) * p.channels : nullptr),
        stride(p.x.stride[2]), channels(p.channels), before(p.width - 1) {}

  // Channels c, c + 1, ... of a step, which may lie before the first.
  VMDDPM_INLINE Vec<T> at(int64_t step, int64_t c, int64_t count) const {
    if (step >= 0) return load_some<T>(x + step * stride + c, count);
    return history ? load_some<T>(history + (step + before) * channels + c, count) : Vec<T>{};
  }
};

template <typename T, typename S, int W>
VMDDPM_INLINE void taps_at(const Rows<T, S>& rows, int64_t step, int64_t c, int64_t count, Vec<T>* taps) {
  VMDDPM_UNROLL
  for (int k = 0; k < W; ++k) taps[k] = rows.at(step - (W - 1) + k, c, count);
}

template <typename T, int W>
VMDDPM_INLINE Vec<T> weighted(const Vec<T>* taps, const T* weight, int64_t channels, const T* bias, int64_t c,
                              int64_t count) {
  Vec<T> v = bias ? load_some<T>(bias + c, count) : Vec<T>{};
  VMDDPM_UNROLL
  for (int k = 0; k < W; ++k) v += load_some<T>(weight + k * channels + c, count) * taps[k];
  return v;
}

// Steps first .. last of one sequence; `weight` is (W, D).
template <typename T, typename S, int W>
void forward_rows(const ConvParams& p, const T* weight, int64_t batch, int64_t first, int64_t last) {
  const Rows<T, S> rows(p, static_cast<const S*>(p.x.data), batch);
  S* const y = static_cast<S*>(p.y.data) + batch * p.y.stride[0];
  const T* const bias = static_cast<const T*>(p.bias);
  for (int64_t l = first; l < last; ++l) {
    for (int64_t c = 0; c < p.channels; c += kLanes<T>) {
      const int64_t count = p.channels - c;
      Vec<T> taps[W];
      taps_at<T, S, W>(rows, l, c, count, taps);
      const Vec<T> v = weighted<T, W>(taps, weight, p.channels, bias, c, count);
      store_some<T>(y + l * p.y.stride[2] + c, p.silu ? silu_lanes<T>(v) : v, count);
    }
  }
}

// Channels first .. last, at most kTile of them, of one sequence.
constexpr int64_t kTile = 128;

template <typename T, typename S, int W>
void backward_rows(const ConvGradParams& g, const T* weight, int64_t batch, int64_t first, int64_t last) {
  const ConvParams& p = g.forward;
  const Rows<T, S> rows(p, static_cast<const S*>(p.x.data), batch);
  const S* const dy = static_cast<const S*>(g.dy.data) + batch * g.dy.stride[0];
  S* const dx = static_cast<S*>(g.dx.data) + batch * g.dx.stride[0];
  T* const dhistory = g.dhistory ? static_cast<T*>(g.dhistory) + batch * (W - 1) * p.channels : nullptr;
  const T* const bias = static_cast<const T*>(p.bias);
  alignas(64) T slopes[W][kTile] = {};  // dv of the last W steps: that of step l in row l % W
  alignas(64) T dweight[W][kTile] = {}, dbias[kTile] = {};
  for (int64_t l = 0; l < p.length + W - 1; ++l) {
    T* const now = slopes[l % W];
    for (int64_t c = first; c < last; c += kLanes<T>) {
      const int64_t count = last - c, i = c - first;
      Vec<T> dv{};
      if (l < p.length) {
        Vec<T> taps[W];
        taps_at<T, S, W>(rows, l, c, count, taps);
        dv = load_some<T>(dy + l * g.dy.stride[2] + c, count);
        if (p.silu) dv = dv * silu_slope_lanes<T>(weighted<T, W>(taps, weight, p.channels, bias, c, count));
        VMDDPM_UNROLL
        for (int k = 0; k < W; ++k) store(dweight[k] + i, load(dweight[k] + i) + dv * taps[k]);
        store(dbias + i, load(dbias + i) + dv);
      }
      store(now + i, dv);
      const int64_t step = l - (W - 1);  // all steps that it is a tap of are known
      if (step < 0 && !dhistory) continue;
      Vec<T> sum{};
      VMDDPM_UNROLL
      for (int k = 0; k < W; ++k) {
        sum += load_some<T>(weight + k * p.channels + c, count) * load(slopes[(l + W - k) % W] + i);
      }
      if (step >= 0) {
        store_some<T>(dx + step * g.dx.stride[2] + c, sum, count);
      } else {
        store_some<T>(dhistory + l * p.channels + c, sum, count);
      }
    }
  }
  for (int64_t c = first; c < last; ++c) {
    const int64_t at = batch * p.channels + c;
    for (int k = 0; k < W; ++k) static_cast<T*>(g.dweight)[at * W + k] = dweight[k][c - first];
    if (g.dbias) static_cast<T*>(g.dbias)[at] = dbias[c - first];
  }
}

}  // namespace
