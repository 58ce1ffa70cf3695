// The description of a copy or a sum for the loops over batch, routes, channels and pixels.
#pragma once
#include "cpu_tasks.h"
#include "../common/lanes.h"

namespace {

// The contiguous axis: pixels or steps (planes), channels (rows), or neither.
enum class Layout { planes, rows, other };

// A copy: to[b, k, step] = from[b, k, pixel of walk k at step]. A sum: to[b, pixel] = the sum over k of
// from[b, k, step of walk k at pixel].
struct Job {
  int64_t batch, routes, channels;
  Walks walks;
  View from, to;
  Layout from_layout, to_layout;
  int threads;
  bool past_cache;  // non-temporal stores: the result does not fit into the cache
};

template <typename T>
T* at(const View& view, int64_t batch, int64_t route, int64_t place, int64_t channel) {
  return static_cast<T*>(view.data) + batch * view.stride[0] + route * view.stride[1] + place * view.stride[2] +
         channel * view.stride[3];
}

constexpr int64_t kPanelBytes = 256 << 10;  // fits into the L2 cache with inputs and outputs

// The number of parts for the n channels or pixels of each of `count` images; a channel or pixel takes `bytes` of a
// panel. Few enough for whole cache lines, and enough for all threads.
inline int64_t parts_of(int64_t n, int64_t unit, int64_t bytes, int64_t panel_bytes, int64_t count, int threads) {
  const int64_t units = (n + unit - 1) / unit, fitting = maximum(1, panel_bytes / (unit * bytes));
  const int64_t wanted = threads > 1 ? (4 * threads + count - 1) / count : 1;
  return minimum(units, maximum((units + fitting - 1) / fitting, wanted));
}

}  // namespace
