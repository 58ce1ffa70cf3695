// What the forward and the backward scan share: how a task finds its piece of the work, and its tiles.
#pragma once
#include "../common/math.h"
#include "../common/tile.h"
#include "params.h"

namespace {

using vmddpm::ScanParams;
using vmddpm::ScanPlan;

constexpr int kStatesAtOnce = 4;  // recurrences in flight: their exponentials hide each other's latency

// Hands out 64-byte aligned arrays from one block of memory. Without memory it only counts what will be needed.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}
  template <typename E>
  E* take(int64_t count) {
    E* taken = memory_ ? reinterpret_cast<E*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(E)) + 63) / 64 * 64;
    return taken;
  }
  int64_t bytes() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// One thread's share: some blocks of channels of one batch element, along one route or, if the routes share their
// image, along all of them one after the other, so that sums over routes have one owner and one order.
struct Task {
  int64_t batch, route_begin, route_end, group, block_begin, block_end;
};

inline int64_t task_count(const ScanParams& p, const ScanPlan& plan) {
  return p.batch * (p.shared ? 1 : p.routes) * plan.groups;
}

inline Task task_at(const ScanParams& p, const ScanPlan& plan, int64_t index) {
  Task task;
  task.group = index % plan.groups;
  task.block_begin = task.group * plan.blocks_per_group;
  task.block_end = task.block_begin + plan.blocks_per_group;
  if (task.block_end > plan.blocks) task.block_end = plan.blocks;
  index /= plan.groups;
  task.route_begin = p.shared ? 0 : index % p.routes;
  task.route_end = p.shared ? p.routes : task.route_begin + 1;
  task.batch = p.shared ? index : index / p.routes;
  return task;
}

// Channels of one block: all lanes, but for the last block of a channel count that is no multiple of them.
inline int64_t columns_of(const ScanParams& p, const ScanPlan& plan, int64_t block) {
  const int64_t left = p.channels - block * plan.lanes;
  return left < plan.lanes ? left : plan.lanes;
}

inline Steps steps_of(const ScanParams& p, const ScanPlan& plan, int64_t route, int64_t chunk) {
  const int64_t first = chunk * plan.chunk;
  const int64_t left = p.length - first;
  return {p.table ? p.table + route * p.length : nullptr, first, left < plan.chunk ? left : plan.chunk};
}

// (K, D, N) or (B, K, D, N) rows of one block, transposed to one register a state; unused lanes are zero.
template <typename T>
void load_states(const void* source, int64_t row, int64_t columns, int64_t states, Vec<T>* out) {
  const T* from = static_cast<const T*>(source) + row * states;
  for (int64_t n = 0; n < states; ++n) {
    Vec<T> v{};
    if (source) {
      for (int64_t c = 0; c < columns; ++c) v[c] = from[c * states + n];
    }
    out[n] = v;
  }
}

template <typename T>
void store_state(void* target, int64_t row, int64_t columns, int64_t states, int64_t n, Vec<T> value) {
  T* to = static_cast<T*>(target) + row * states;
  for (int64_t c = 0; c < columns; ++c) to[c * states + n] = value[c];
}

// One value a channel: a (K, D) or (B, K, D) parameter.
template <typename T>
Vec<T> load_channels(const void* source, int64_t row, int64_t columns) {
  Vec<T> v{};
  if (source) {
    for (int64_t c = 0; c < columns; ++c) v[c] = static_cast<const T*>(source)[row + c];
  }
  return v;
}

template <typename T>
void store_channels(void* target, int64_t row, int64_t columns, Vec<T> v) {
  for (int64_t c = 0; c < columns; ++c) static_cast<T*>(target)[row + c] = v[c];
}

// A sum over the chunks of a sequence that keeps what each addition rounds away (Kahan), so that its error does not grow
// with the length.
template <typename T>
struct LongSum {
  Vec<T> total, lost;
  void clear() { total = lost = Vec<T>{}; }
  void add(Vec<T> value) {
    const Vec<T> corrected = value - lost;
    const Vec<T> sum = total + corrected;
    lost = (sum - total) - corrected;
    total = sum;
  }
};

// A tile of channels; lanes beyond the last channel read as zero.
template <typename T>
void load_channel_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column,
                       int64_t columns, Vec<T>* tile) {
  if (columns < kLanes<T>) std::memset(tile, 0, static_cast<size_t>(steps.count) * sizeof(Vec<T>));
  load_tile(view, batch, route, steps, column, columns, kLanes<T>, reinterpret_cast<T*>(tile));
}

// delta <- softplus(delta + bias) where asked for; `slope`, if given, takes its derivative.
template <typename T>
void activate_delta(Vec<T>* delta, Vec<T>* slope, Vec<T> bias, bool softplus, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Vec<T> raw = delta[i] + bias;
    Vec<T> derivative = Vec<T>{} + T(1);
    if (softplus) {
      softplus_lanes<T>(raw, delta[i], derivative);
    } else {
      delta[i] = raw;
    }
    if (slope) slope[i] = derivative;
  }
}

}  // namespace
