// Shared by the forward and the backward scan: tasks, their share of the work, and tiles.
#pragma once
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "../common/integers.h"
#include "../common/math.h"
#include "../common/tile.h"
#include "params.h"

namespace {

using vmddpm::ScanParams;
using vmddpm::ScanPlan;

// States advanced together: their exponentials hide each other's latency and their states fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kStatesAtOnce = 8;
#else
constexpr int kStatesAtOnce = 4;
#endif

// Calls f(count, first) to cover all states in groups of kStatesAtOnce, then 4, then 1.
template <typename Function>
void for_states(int64_t states, Function f) {
  int64_t n = 0;
  for (; n + kStatesAtOnce <= states; n += kStatesAtOnce) f(std::integral_constant<int, kStatesAtOnce>(), n);
  if (kStatesAtOnce > 4 && n + 4 <= states) {
    f(std::integral_constant<int, 4>(), n);
    n += 4;
  }
  for (; n < states; ++n) f(std::integral_constant<int, 1>(), n);
}

// How a step is discretized: by Mamba's rule (`decaying` if A is nowhere positive, else `growing`) or by zero-order
// hold. The first two differ in speed alone.
enum class Rule { decaying, growing, zero_order_hold };

// A is scaled by this before it is multiplied by delta.
template <typename T, Rule kRule>
constexpr T kRateScale = kRule == Rule::decaying ? kDecayScale<T> : T(1);

template <typename T>
Rule rule_of(const ScanParams& p) {
  if (p.zoh) return Rule::zero_order_hold;
  const T* A = static_cast<const T*>(p.A);
  const int64_t count = p.routes * p.channels * p.states;
  constexpr T kLeast = std::numeric_limits<T>::lowest() / 2;         // can be scaled without overflow
  std::conditional_t<sizeof(T) == 4, int32_t, int64_t> growing = 0;  // as wide as T, for the vectorizer
  for (int64_t i = 0; i < count; ++i) growing |= static_cast<int>(A[i] > T(0)) | static_cast<int>(A[i] < kLeast);
  return growing ? Rule::growing : Rule::decaying;
}

// e^v, given v * kRateScale.
template <Rule kRule, typename V>
V decay_of(V v) {
  return kRule == Rule::decaying ? decay_lanes(v) : growth_lanes(v);
}

// e^v times a zero state, without the exponential: zero, even for v = -inf, but NaN for v = NaN or inf.
template <typename T>
Vec<T> zero_decayed(Vec<T> v) {
  return at_least(v, std::numeric_limits<T>::lowest()) * Vec<T>{};
}

// e^v state. kZero: the state is zero; the exponential is still computed where it may overflow.
template <typename T, Rule kRule, bool kZero>
Vec<T> decayed(Vec<T> v, Vec<T> state) {
  return kZero && kRule == Rule::decaying ? zero_decayed<T>(v) : decay_of<kRule>(v) * state;
}

// Allocates 64-byte aligned arrays from one block of memory; without memory it only counts the bytes needed.
// A spare cache line between arrays keeps page-sized tiles from mapping to the same cache sets.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}
  template <typename E>
  E* allocate(int64_t count) {
    E* taken = memory_ ? reinterpret_cast<E*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(E)) + 63) / 64 * 64 + 64;
    return taken;
  }
  int64_t bytes() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// A thread's unit of work: some groups of channels of a piece of the batch, along one route or, with sum_routes, along
// all routes in turn, so that sums over routes have one owner and one order.
struct Task {
  int64_t index, piece, batch_begin, batch_end, route_begin, route_end, group_begin, group_end, block_begin, block_end;
  int64_t batch;  // the current image
};

// How groups are assigned to tasks. Groups of one task use whole rows of memory and share the staged B and C. The
// assignment depends on the number of threads; no sum does.
struct Tasks {
  int64_t count, groups_at_once, splits;
};

// Picks the most groups per task that still minimize the groups of the busiest thread.
inline Tasks tasks_of(const ScanParams& p, const ScanPlan& plan, int threads) {
  const int64_t sequences = plan.pieces * (p.sum_routes ? 1 : p.routes);
  Tasks best{0, 1, 0};
  int64_t least = 0;
  for (int64_t together = plan.groups; together >= 1; --together) {
    const int64_t splits = (plan.groups + together - 1) / together, count = sequences * splits;
    const int64_t most = (count + threads - 1) / threads * together;
    if (best.count == 0 || most < least) {
      best = {count, together, splits};
      least = most;
    }
  }
  return best;
}

inline Task task_at(const ScanParams& p, const ScanPlan& plan, const Tasks& tasks, int64_t index) {
  Task task;
  task.index = index;
  task.group_begin = index % tasks.splits * tasks.groups_at_once;
  task.group_end = minimum(task.group_begin + tasks.groups_at_once, plan.groups);
  task.block_begin = task.group_begin * plan.blocks_per_group;
  task.block_end = minimum(task.group_end * plan.blocks_per_group, plan.blocks);
  index /= tasks.splits;
  task.route_begin = p.sum_routes ? 0 : index % p.routes;
  task.route_end = p.sum_routes ? p.routes : task.route_begin + 1;
  task.piece = p.sum_routes ? index : index / p.routes;
  task.batch = task.batch_begin = p.batch * task.piece / plan.pieces;
  task.batch_end = p.batch * (task.piece + 1) / plan.pieces;
  return task;
}

// Channels of one block: `lanes`, or fewer in the last block.
inline int64_t columns_of(const ScanParams& p, const ScanPlan& plan, int64_t block) {
  return minimum(p.channels - block * plan.lanes, plan.lanes);
}

inline Steps steps_of(const ScanParams& p, const ScanPlan& plan, int64_t route, int64_t chunk) {
  const int64_t first = chunk * plan.chunk;
  return {p.table ? p.table + route * p.length : nullptr, first, minimum(p.length - first, plan.chunk)};
}

// Whether the states before a chunk are zero and their gradient is not needed.
inline bool begins_with_zero(const ScanParams& p, const Steps& chunk) { return chunk.first == 0 && !p.initial_state; }

// Loads one block's rows of (K, D, N) or (B, K, D, N), transposed to one register per state; unused lanes are zero.
template <typename T>
void load_states(const void* source, int64_t row, int64_t columns, int64_t states, Vec<T>* out) {
  constexpr int64_t W = kLanes<T>;
  if (!source || columns < W) std::memset(static_cast<void*>(out), 0, static_cast<size_t>(states) * sizeof(Vec<T>));
  if (!source) return;
  const T* from = static_cast<const T*>(source) + row * states;
  if (columns == W && states == 1) return void(*out = load(from));
  int64_t n = 0;
  for (; columns == W && n + W <= states; n += W) {
    for (int64_t c = 0; c < W; ++c) out[n + c] = load(from + c * states + n);
    transpose<T>(out + n);
  }
  T* lanes = reinterpret_cast<T*>(out);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t rest = n; rest < states; ++rest) lanes[rest * W + c] = from[c * states + rest];
  }
}

// Loads the states (B, K, D, N) of all blocks of a task in one sequence, or zeros if `source` is null.
template <typename T>
void load_all_states(const void* source, const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t route,
                     Vec<T>* out) {
  const int64_t blocks = task.block_end - task.block_begin;
  if (!source) return void(std::memset(static_cast<void*>(out), 0, static_cast<size_t>(blocks * p.states) * sizeof(Vec<T>)));
  for (int64_t block = task.block_begin; block < task.block_end; ++block) {
    const int64_t row = (task.batch * p.routes + route) * p.channels + block * plan.lanes;
    load_states<T>(source, row, columns_of(p, plan, block), p.states, out + (block - task.block_begin) * p.states);
  }
}

// Loads A, scaled as decay_of expects.
template <typename T, Rule kRule>
void load_decay_rates(const void* A, int64_t row, int64_t columns, int64_t states, Vec<T>* out) {
  load_states<T>(A, row, columns, states, out);
  for (int64_t n = 0; n < states; ++n) out[n] *= kRateScale<T, kRule>;
}

// The inverse of load_states; `in` is overwritten.
template <typename T>
void store_states(void* target, int64_t row, int64_t columns, int64_t states, Vec<T>* in) {
  constexpr int64_t W = kLanes<T>;
  T* to = static_cast<T*>(target) + row * states;
  if (columns == W && states == 1) return store(to, *in);
  int64_t n = 0;
  for (; columns == W && n + W <= states; n += W) {
    transpose<T>(in + n);
    for (int64_t c = 0; c < W; ++c) store(to + c * states + n, in[n + c]);
  }
  const T* lanes = reinterpret_cast<const T*>(in);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t rest = n; rest < states; ++rest) to[c * states + rest] = lanes[rest * W + c];
  }
}

// Loads one value per channel of a (K, D) or (B, K, D) parameter, or zeros if `source` is null.
template <typename T>
Vec<T> load_channels(const void* source, int64_t row, int64_t columns) {
  Vec<T> v{};
  if (!source) return v;
  const T* from = static_cast<const T*>(source) + row;
  if (columns == kLanes<T>) return load(from);
  for (int64_t c = 0; c < columns; ++c) v[c] = from[c];
  return v;
}

template <typename T>
void store_channels(void* target, int64_t row, int64_t columns, Vec<T> v) {
  T* to = static_cast<T*>(target) + row;
  if (columns == kLanes<T>) return store(to, v);
  for (int64_t c = 0; c < columns; ++c) to[c] = v[c];
}

// A Kahan sum over the chunks of a sequence: its error does not grow with the length.
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

// Prefetches the tensors of the next chunk of a task while the current chunk is worked on.
template <int kTensors>
struct Prefetcher {
  RowPrefetcher tensors[kTensors];
  Prefetcher() = default;
  Prefetcher(const View* const (&views)[kTensors], const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t route,
        int64_t chunk) {
    const Steps steps = steps_of(p, plan, route, chunk);
    const int64_t first = task.block_begin * plan.lanes, last = minimum(task.block_end * plan.lanes, p.channels);
    for (int i = 0; i < kTensors; ++i) {
      const bool matrix = views[i] == &p.B || views[i] == &p.C, factor = views[i] == &p.delta && p.rank > 0;
      tensors[i] = matrix || factor ? RowPrefetcher(*views[i], task.batch, route, steps, 0, matrix ? p.states : p.rank)
                                    : RowPrefetcher(*views[i], task.batch, route, steps, first, last - first);
    }
  }
  // Call once per step of each block.
  VMDDPM_INLINE void next() {
    for (RowPrefetcher& rows : tensors) rows.next();
  }
};

// One row of channels per step, in the tensor itself if its layout allows, else in a tile.
template <typename Element>
struct StepRows {
  Element* base;
  int64_t stride;
  const int32_t* pixels;  // null: consecutive rows
  Element* at(int64_t i) const { return base + (pixels ? pixels[i] : i) * stride; }
};

template <typename Element>
StepRows<Element> rows_of(Element* data, const View& view, int64_t batch, int64_t route, const Steps& steps,
                      int64_t column) {
  Element* start = data + origin(view, batch, route, column);
  if (steps.table) return {start, view.stride[2], steps.table + steps.first};
  return {start + steps.first * view.stride[2], view.stride[2], nullptr};
}

// Loads a tile of channels; lanes beyond the last channel are zero, as is the whole tile of a null tensor.
template <typename T>
StepRows<const T> load_channel_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column,
                          int64_t columns, Vec<T>* tile) {
  if (!view.data || columns < kLanes<T>) {
    std::memset(static_cast<void*>(tile), 0, static_cast<size_t>(steps.count) * sizeof(Vec<T>));
  }
  if (view.data) load_tile(view, batch, route, steps, column, columns, kLanes<T>, reinterpret_cast<T*>(tile));
  return {reinterpret_cast<T*>(tile), kLanes<T>, nullptr};
}

// The destination of a route's y or dx: `sum`, or `narrow` (if set) for the last route, which rounds the sum.
inline const View& result_of(const ScanParams& p, const View& sum, const View& narrow, int64_t route) {
  return narrow.data && route + 1 == p.routes ? narrow : sum;
}

// Stores a tile of y or dx; with sum_routes, adds it to the sum of the earlier routes. `spare` is overwritten.
template <typename T>
void store_image_tile(const ScanParams& p, const View& sum, const View& narrow, int64_t batch, int64_t route,
                      const Steps& steps, int64_t column, int64_t columns, Vec<T>* tile, Vec<T>* spare) {
  const View& result = result_of(p, sum, narrow, route);
  const bool add = p.sum_routes && route > 0, apart = add && &result != &sum;
  if (columns == kLanes<T> && has_rows(result) && (!add || has_rows(sum))) {
    return with_type(result, [&](auto* data) {
      const auto to = rows_of(data, result, batch, route, steps, column);
      if (!add) {
        for (int64_t i = 0; i < steps.count; ++i) store_lanes<T>(to.at(i), tile[i]);
        return;
      }
      const StepRows<const T> before = rows_of(static_cast<const T*>(sum.data), sum, batch, route, steps, column);
      for (int64_t i = 0; i < steps.count; ++i) store_lanes<T>(to.at(i), load(before.at(i)) + tile[i]);
    });
  }
  if (apart) {
    load_channel_tile<T>(sum, batch, route, steps, column, columns, spare);
    for (int64_t i = 0; i < steps.count; ++i) tile[i] += spare[i];
  }
  const T* const rows = reinterpret_cast<const T*>(tile);
  store_tile<T>(result, batch, route, steps, column, columns, kLanes<T>, rows, add && !apart);
}

// Calls f(rows of a, rows of b): the tensors' own rows if the types agree and a register's channels are contiguous,
// else tiles.
template <typename T, typename Function>
void with_rows(const View& a, const View& b, int64_t batch, int64_t route, const Steps& steps, int64_t column,
               int64_t columns, Vec<T>* a_tile, Vec<T>* b_tile, Function f) {
  if (columns == kLanes<T> && has_rows(a) && has_rows(b) && a.dtype == b.dtype && a.data && b.data) {
    return with_type(a, [&](const auto* first) {
      const auto* second = static_cast<decltype(first)>(b.data);
      f(rows_of(first, a, batch, route, steps, column), rows_of(second, b, batch, route, steps, column));
    });
  }
  f(load_channel_tile<T>(a, batch, route, steps, column, columns, a_tile),
    load_channel_tile<T>(b, batch, route, steps, column, columns, b_tile));
}

}  // namespace
