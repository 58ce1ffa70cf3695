// What is asked for, as the loops over batch, routes, channels and pixels see it.
#pragma once
#include "cpu_tasks.h"
#include "../common/lanes.h"

namespace {

// What lies side by side: pixels or steps, channels, or neither.
enum class Layout { planes, rows, other };

// A copy has to[b, k, step] = from[b, k, pixel of walk k at step]. A sum has to[b, pixel] = the sum over k of
// from[b, k, step of walk k at pixel].
struct Job {
  int64_t batch, routes, channels;
  Walks walks;
  View from, to;
  Layout from_layout, to_layout;
  int threads;
  bool past_cache;  // what is written does not fit into the cache
};

template <typename T>
T* at(const View& view, int64_t batch, int64_t route, int64_t place, int64_t channel) {
  return static_cast<T*>(view.data) + batch * view.stride[0] + route * view.stride[1] + place * view.stride[2] +
         channel * view.stride[3];
}

constexpr int64_t kPanelBytes = 256 << 10;  // of a second-level cache, beside what is read and written

// In how many parts to take the n channels or pixels of `count` images, a value of each being `bytes` of panel: few
// enough to use whole cache lines, enough for the threads.
inline int64_t parts_of(int64_t n, int64_t unit, int64_t bytes, int64_t panel_bytes, int64_t count, int threads) {
  const int64_t units = (n + unit - 1) / unit, fitting = maximum(1, panel_bytes / (unit * bytes));
  const int64_t wanted = threads > 1 ? (4 * threads + count - 1) / count : 1;
  return minimum(units, maximum((units + fitting - 1) / fitting, wanted));
}

}  // namespace
