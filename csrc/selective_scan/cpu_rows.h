// The forward scan of a single state, whose recurrence is so short that tiles would cost as much as it does. All channels
// of a task take a step together: x and delta are read and y is written where they lie, a row of memory after another.
#pragma once
#include "cpu_common.h"

namespace {

// What the recurrence keeps of a task's channels, one register a block.
template <typename T>
struct Channels {
  const Vec<T>*A, *bias, *D;
  Vec<T>* h;
  int64_t blocks;
};

// Where a step finds its channels. y is the step's own result added to `sum`.
template <typename T, typename Source, typename Target>
struct StepRows {
  const Source *x, *delta;
  const T* sum;
  Target* y;
  void ask(int64_t column) const {
    prefetch(x + column);
    prefetch(delta + column);
    prefetch(y + column);
  }
};

// A step; what a later one needs is asked for.
template <typename T, Rule kRule, bool kSoftplus, bool kAdd, typename Source, typename Target>
void scan_row(StepRows<T, Source, Target> row, StepRows<T, Source, Target> later, Channels<T> of, T B, T C) {
  for (int64_t block = 0; block < of.blocks; ++block) {
    const int64_t column = block * kLanes<T>;
    later.ask(column);
    const Vec<T> x = load_lanes<T>(row.x + column), raw = load_lanes<T>(row.delta + column) + of.bias[block];
    const Vec<T> delta = kSoftplus ? softplus_lanes<T>(raw) : raw;
    const Vec<T> h = decay_of<kRule>(delta * of.A[block]) * of.h[block] + delta * x * B;
    of.h[block] = h;
    const Vec<T> y = of.D[block] * x + h * C;
    store_lanes<T>(row.y + column, kAdd ? load_lanes<T>(row.sum + column) + y : y);
  }
}

template <typename T, typename Source, typename Target>
struct RouteRows {
  Rows<const Source> x, delta;
  Rows<const T> sum;
  Rows<Target> y;
  StepRows<T, Source, Target> at(int64_t i) const { return {x.at(i), delta.at(i), sum.at(i), y.at(i)}; }
};

// A chunk of a route; B and C are its own.
template <typename T, Rule kRule, bool kSoftplus, bool kAdd, typename Source, typename Target>
void scan_rows(RouteRows<T, Source, Target> rows, const Steps& chunk, int64_t length, Channels<T> of, const T* B,
               const T* C) {
  constexpr int64_t kAhead = 8;  // rows: long enough for memory to answer, and they do not push each other out
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t step = chunk.first + i;
    scan_row<T, kRule, kSoftplus, kAdd>(rows.at(step), rows.at(smaller(step + kAhead, length - 1)), of, B[i], C[i]);
  }
}

// The first `blocks` blocks of a task over a chunk.
template <typename T, Rule kRule, typename Source, typename Target>
void rows_chunk(const ScanParams& p, const View& y, const Task& task, int64_t k, const Steps& chunk, int64_t column,
                Channels<T> of, const T* B, const T* C) {
  const Steps route{p.table ? p.table + k * p.length : nullptr, 0, p.length};
  const auto rows = [&](auto* data, const View& view) { return rows_of(data, view, task.batch, k, route, column); };
  const RouteRows<T, Source, Target> at{rows(static_cast<const Source*>(p.x.data), p.x),
                                        rows(static_cast<const Source*>(p.delta.data), p.delta),
                                        rows(static_cast<const T*>(p.y.data), p.y),
                                        rows(static_cast<Target*>(y.data), y)};
  const bool add = p.shared && k > 0;
  if (p.softplus && add) return scan_rows<T, kRule, true, true>(at, chunk, p.length, of, B, C);
  if (p.softplus) return scan_rows<T, kRule, true, false>(at, chunk, p.length, of, B, C);
  if (add) return scan_rows<T, kRule, false, true>(at, chunk, p.length, of, B, C);
  return scan_rows<T, kRule, false, false>(at, chunk, p.length, of, B, C);
}

// Where a route's result goes: the last of those that share their image rounds their sum.
inline const View& result_of(const ScanParams& p, int64_t route) {
  return p.narrow_y.data && route + 1 == p.routes ? p.narrow_y : p.y;
}

// Takes a chunk's steps by rows where there are such, for all blocks of the task but one with lanes to spare. Returns the
// first block that is left.
template <typename T, Rule kRule>
int64_t take_rows(const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t k, const Steps& chunk,
                  Channels<T> of, const T* B, const T* C) {
  constexpr DType kExact = sizeof(T) == 8 ? DType::f64 : DType::f32;
  const View& y = result_of(p, k);
  const DType type = p.x.dtype;
  if (kRule == Rule::zero_order_hold || p.states != 1 || p.delta.dtype != type) return task.block_begin;
  if (!has_rows(p.x) || !has_rows(p.delta) || !has_rows(y) || !has_rows(p.y)) return task.block_begin;
  if (y.dtype != type && y.dtype != kExact) return task.block_begin;

  const int64_t column = task.block_begin * plan.lanes;
  const int64_t end = smaller(task.block_end, p.channels / plan.lanes);
  of.blocks = end - task.block_begin;
  if (type == kExact) {
    rows_chunk<T, kRule, T, T>(p, y, task, k, chunk, column, of, B, C);
    return end;
  }
  if constexpr (kExact == DType::f32) {
    const auto narrow = [&](auto source) {
      using Source = decltype(source);
      if (y.dtype == kExact) return rows_chunk<T, kRule, Source, T>(p, y, task, k, chunk, column, of, B, C);
      return rows_chunk<T, kRule, Source, Source>(p, y, task, k, chunk, column, of, B, C);
    };
    if (type == DType::f16) narrow(Half());
    if (type == DType::bf16) narrow(BFloat16());
    if (type != DType::f64) return end;
  }
  return task.block_begin;
}

}  // namespace
