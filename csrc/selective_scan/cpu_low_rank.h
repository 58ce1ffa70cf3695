// Low-rank step sizes: a factor of R numbers per pixel times the route's weight (D, R). Tiles of step sizes are formed
// on demand, and their gradients passed to factor and weight at once: an image's step sizes are never stored whole.
#pragma once
#include "cpu_common.h"

namespace {

// A task's part of the weight, and the factor of the current chunk.
template <typename T>
struct LowRank {
  T* factor;          // (steps, R)
  Vec<T>* weight;     // a register of channels for each block and rank
  LowRank() = default;
  LowRank(Arena& arena, const ScanParams& p, const ScanPlan& plan, int64_t blocks)
      : factor(arena.allocate<T>(plan.chunk * p.rank)), weight(arena.allocate<Vec<T>>(blocks * p.rank)) {}
};

// Loads the factor of a chunk.
template <typename T>
void load_factor(const ScanParams& p, const Task& task, int64_t k, const Steps& steps, const LowRank<T>& of) {
  if (p.rank > 0) load_tile<T>(p.delta, task.batch, k, steps, 0, p.rank, p.rank, of.factor);
}

// Loads the weight of a block in one route.
template <typename T>
void load_weight(const ScanParams& p, int64_t row, int64_t columns, int64_t place, const LowRank<T>& of) {
  if (p.rank > 0) load_states<T>(p.dt_proj, row, columns, p.rank, of.weight + place * p.rank);
}

// Calls f(count, first) to cover all steps, several at once: their sums hide each other's latency.
template <typename Function>
void for_steps(int64_t steps, Function f) {
  int64_t i = 0;
  for (; i + kStatesAtOnce <= steps; i += kStatesAtOnce) f(std::integral_constant<int, kStatesAtOnce>(), i);
  for (; i < steps; ++i) f(std::integral_constant<int, 1>(), i);
}

// delta[i] = the sum over the ranks of factor[i][r] weight[r].
template <typename T>
VMDDPM_NOINLINE void form_steps(const T* factor, const Vec<T>* weight, int64_t rank, int64_t steps, Vec<T>* delta) {
  for_steps(steps, [&](auto at_once, int64_t first) {
    constexpr int S = decltype(at_once)::value;
    Vec<T> sum[S] = {};
    for (int64_t r = 0; r < rank; ++r) {
      const T* const at = factor + first * rank + r;
      const Vec<T> column = weight[r];
      VMDDPM_UNROLL
      for (int s = 0; s < S; ++s) sum[s] += column * at[s * rank];
    }
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) delta[first + s] = sum[s];
  });
}

// Calls f(rows of a, rows of a block's step sizes before bias and softplus). Without dt_proj this is with_rows.
template <typename T, typename Function>
void with_step_rows(const ScanParams& p, const View& a, const Task& task, int64_t k, const Steps& steps, int64_t column,
                    int64_t columns, int64_t place, const LowRank<T>& of, Vec<T>* a_tile, Vec<T>* tile, Function f) {
  if (p.rank == 0) return with_rows<T>(a, p.delta, task.batch, k, steps, column, columns, a_tile, tile, f);
  form_steps<T>(of.factor, of.weight + place * p.rank, p.rank, steps.count, tile);
  const StepRows<const T> rows{reinterpret_cast<const T*>(tile), kLanes<T>, nullptr};
  const DType accumulation = sizeof(T) == 8 ? DType::f64 : DType::f32;
  if (columns == kLanes<T> && has_rows(a) && a.dtype == accumulation && a.data) {
    return f(rows_of(static_cast<const T*>(a.data), a, task.batch, k, steps, column), rows);
  }
  f(load_channel_tile<T>(a, task.batch, k, steps, column, columns, a_tile), rows);
}

// The gradients of the factor and the weight.
template <typename T>
struct LowRankGradients {
  Vec<T>* rows;       // the weight by rows: R numbers per channel of the task, padded to whole registers
  LongSum<T>* weight; // laid out as LowRank::weight
  T *factor, *all;    // (steps, R padded to whole registers): of one group, and of all groups
  int64_t registers;
  LowRankGradients() = default;
  LowRankGradients(Arena& arena, const ScanParams& p, const ScanPlan& plan, int64_t blocks)
      : registers((p.rank + plan.lanes - 1) / plan.lanes) {
    rows = arena.allocate<Vec<T>>(blocks * plan.lanes * registers);
    weight = arena.allocate<LongSum<T>>(blocks * p.rank);
    for (T** tile : {&factor, &all}) *tile = arena.allocate<T>(plan.chunk * registers * plan.lanes);
  }
  int64_t width() const { return registers * kLanes<T>; }
};

// Loads the weight of a block in one route by rows, and clears its gradient.
template <typename T>
void begin_weight(const ScanParams& p, int64_t row, int64_t columns, int64_t place, const LowRankGradients<T>& of) {
  const int64_t width = of.width();
  T* const rows = reinterpret_cast<T*>(of.rows) + place * kLanes<T> * width;
  std::memset(static_cast<void*>(rows), 0, static_cast<size_t>(kLanes<T> * width) * sizeof(T));
  for (int64_t c = 0; c < columns && p.rank > 0; ++c) {
    std::memcpy(rows + c * width, static_cast<const T*>(p.dt_proj) + (row + c) * p.rank,
                static_cast<size_t>(p.rank) * sizeof(T));
  }
  for (int64_t r = 0; r < p.rank; ++r) of.weight[place * p.rank + r].clear();
}

// weight[r] += the sum over the steps of factor[i][r] ddelta[i].
template <typename T>
VMDDPM_NOINLINE void add_to_weight(const T* factor, const Vec<T>* ddelta, int64_t rank, int64_t steps,
                                   LongSum<T>* weight) {
  for_states(rank, [&](auto at_once, int64_t first) {
    constexpr int S = decltype(at_once)::value;
    Vec<T> sum[S] = {};
    for (int64_t i = 0; i < steps; ++i) {
      const T* const at = factor + i * rank + first;
      const Vec<T> row = ddelta[i];
      VMDDPM_UNROLL
      for (int s = 0; s < S; ++s) sum[s] += row * at[s];
    }
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) weight[first + s].add(sum[s]);
  });
}

// factor[i] += the sum over the columns of ddelta[i][c] rows[c]; a row is `registers` registers of ranks.
template <typename T>
VMDDPM_NOINLINE void add_to_factor(const Vec<T>* rows, const T* ddelta, int64_t columns, int64_t registers,
                                   int64_t steps, T* factor) {
  constexpr int64_t W = kLanes<T>;
  for (int64_t v = 0; v < registers; ++v) {
    for_steps(steps, [&](auto at_once, int64_t first) {
      constexpr int S = decltype(at_once)::value;
      T* const to = factor + (first * registers + v) * W;
      Vec<T> sum[S];
      VMDDPM_UNROLL
      for (int s = 0; s < S; ++s) sum[s] = load(to + s * registers * W);
      for (int64_t c = 0; c < columns; ++c) {
        const T* const at = ddelta + first * W + c;
        const Vec<T> row = rows[c * registers + v];
        VMDDPM_UNROLL
        for (int s = 0; s < S; ++s) sum[s] += row * at[s * W];
      }
      VMDDPM_UNROLL
      for (int s = 0; s < S; ++s) store(to + s * registers * W, sum[s]);
    });
  }
}

// Adds the gradient of a block's step sizes, one register per step, to those of the factor and of the weight.
template <typename T>
void add_low_rank(const ScanParams& p, int64_t columns, int64_t place, const Steps& steps, const LowRank<T>& given,
                  const Vec<T>* ddelta, const LowRankGradients<T>& of) {
  add_to_weight<T>(given.factor, ddelta, p.rank, steps.count, of.weight + place * p.rank);
  add_to_factor<T>(of.rows + place * kLanes<T> * of.registers, reinterpret_cast<const T*>(ddelta), columns, of.registers,
                   steps.count, of.factor);
}

// Stores the gradient of a block's weight, (pieces, K, D, R); `room`, of R registers, is overwritten.
template <typename T>
void store_weight(const ScanParams& p, void* target, int64_t row, int64_t columns, int64_t place,
                  const LowRankGradients<T>& of, Vec<T>* room) {
  if (!target) return;
  for (int64_t r = 0; r < p.rank; ++r) room[r] = of.weight[place * p.rank + r].total;
  store_states<T>(target, row, columns, p.rank, room);
}

}  // namespace
