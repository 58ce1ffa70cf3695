// The forward scan. A register holds channels, a few registers hold their states, and the sequence is walked in chunks
// small enough to keep their tiles in the L1 cache.
#pragma once
#include "cpu_common.h"
#include "cpu_forward_rows.h"
#include "cpu_low_rank.h"

namespace {

template <typename T>
struct ForwardBuffers {
  Vec<T>*x, *delta, *drive, *y;      // tiles: one register per step
  Vec<T>*A, *h, *bias, *D;           // for each block of the task
  T *B, *C;
  LowRank<T> low_rank;
  ForwardBuffers(Arena& arena, const ScanParams& p, const ScanPlan& plan, const Tasks& tasks) {
    const int64_t blocks = tasks.groups_at_once * plan.blocks_per_group;
    for (Vec<T>** tile : {&x, &delta, &drive, &y}) *tile = arena.allocate<Vec<T>>(plan.chunk);
    for (Vec<T>** states : {&A, &h}) *states = arena.allocate<Vec<T>>(blocks * p.states);
    for (Vec<T>** channels : {&bias, &D}) *channels = arena.allocate<Vec<T>>(blocks);
    for (T** rows : {&B, &C}) *rows = arena.allocate<T>(plan.chunk * p.states);
    low_rank = LowRank<T>(arena, p, plan, blocks);
  }
};

using ForwardPrefetcher = Prefetcher<5>;  // x, delta, y, B and C

// Inputs of a recurrence step: delta after bias and softplus, drive = delta x, and skip = D x, the start of the sum y.
template <typename T>
struct ForwardStep {
  Vec<T> delta, drive, skip;
};

template <typename T, bool kSoftplus, typename Source>
struct PrepareForward {
  StepRows<Source> x, delta;
  Vec<T> bias, D;
  ForwardStep<T> operator()(int64_t i) const {
    const Vec<T> input = load_lanes<T>(x.at(i)), raw = load_lanes<T>(delta.at(i)) + bias;
    const Vec<T> step = kSoftplus ? softplus_lanes<T>(raw) : raw;
    return {step, step * input, D * input};
  }
};

template <typename T, bool kSoftplus, typename Source>
PrepareForward<T, kSoftplus, Source> prepare_forward(StepRows<Source> x, StepRows<Source> delta, Vec<T> bias, Vec<T> D) {
  return {x, delta, bias, D};
}

// Reads a ForwardStep from tiles.
template <typename T>
struct PreparedForward {
  const Vec<T>*delta, *drive, *y;
  ForwardStep<T> operator()(int64_t i) const { return {delta[i], drive[i], y[i]}; }
};

// A step of the recurrence for S states: h = exp(delta A) h + drive B,  y += C h,  where drive = delta x; B and C are
// rows of N states. kFirst: h is zero on entry.
template <typename T, int S, Rule kRule, bool kFirst>
VMDDPM_INLINE Vec<T> scan_step(const ForwardStep<T>& step, const Vec<T>* a, const T* B, const T* C, Vec<T>* state) {
  Vec<T> y[2] = {};  // two partial sums halve the chain of roundings
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    const Vec<T> v = step.delta * a[s];
    Vec<T> input = step.drive * B[s];
    if constexpr (kRule == Rule::zero_order_hold) {
      const Vec<T> decay = decay_of<kRule>(v);
      Vec<T> phi, dphi;
      zoh_lanes<T>(v, decay, phi, dphi);
      input *= phi;
      state[s] = decay * state[s] + input;
    } else {
      state[s] = decayed<T, kRule, kFirst>(v, state[s]) + input;
    }
    y[s & 1] += state[s] * C[s];
  }
  return step.skip + (y[0] + y[1]);
}

// Advances S states of one block over a chunk. `first`: the states before it are zero.
template <typename T, int S, Rule kRule, typename Prepare>
void scan_states(Prepare prepare, ForwardBuffers<T> w, const Vec<T>* A, Vec<T>* h, int64_t n, int64_t states,
                 int64_t steps, bool first, ForwardPrefetcher* prefetcher) {
  Vec<T> a[S], state[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    a[s] = A[s];
    state[s] = h[s];
  }
  int64_t i = 0;
  if (kRule == Rule::decaying && first) {
    if (prefetcher) prefetcher->next();
    w.y[0] = scan_step<T, S, kRule, true>(prepare(0), a, w.B + n, w.C + n, state);
    i = 1;
  }
  for (; i < steps; ++i) {
    if (prefetcher) prefetcher->next();
    w.y[i] = scan_step<T, S, kRule, false>(prepare(i), a, w.B + i * states + n, w.C + i * states + n, state);
  }
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) h[s] = state[s];
}

// Advances all states of a block over a chunk. The steps are prepared once, in tiles that all states read.
template <typename T, Rule kRule, typename Prepare>
void scan_block(Prepare prepare, const ForwardBuffers<T>& w, const Vec<T>* A, Vec<T>* h, int64_t states, int64_t steps,
                bool first, ForwardPrefetcher* prefetcher) {
  // With few states the recurrence is too short to cover the prefetches: issue them while preparing.
  ForwardPrefetcher* const early = states < kStatesAtOnce ? prefetcher : nullptr;
  if (early) prefetcher = nullptr;
  for (int64_t i = 0; i < steps; ++i) {
    if (early) early->next();
    const ForwardStep<T> step = prepare(i);
    w.delta[i] = step.delta;
    w.drive[i] = step.drive;
    w.y[i] = step.skip;
  }
  const PreparedForward<T> prepared{w.delta, w.drive, w.y};
  for_states(states, [&](auto at_once, int64_t n) {
    scan_states<T, at_once.value, kRule>(prepared, w, A + n, h + n, n, states, steps, first, prefetcher);
    prefetcher = nullptr;
  });
}

// One block over one chunk: loads tiles, walks all states, stores a tile.
template <typename T, Rule kRule>
void forward_chunk(const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t k, int64_t block,
                   const Steps& steps, ForwardPrefetcher* prefetcher, const ForwardBuffers<T>& w) {
  const int64_t N = p.states, channel = block * plan.lanes, columns = columns_of(p, plan, block);
  const int64_t place = block - task.block_begin, local = place * N;
  const bool first = begins_with_zero(p, steps);
  const auto scan_rows_of = [&](const auto& x, const auto& delta) {
    const auto scan = [&](const auto& prepare) {
      scan_block<T, kRule>(prepare, w, w.A + local, w.h + local, N, steps.count, first, prefetcher);
    };
    return p.softplus ? scan(prepare_forward<T, true>(x, delta, w.bias[place], w.D[place]))
                      : scan(prepare_forward<T, false>(x, delta, w.bias[place], w.D[place]));
  };
  with_step_rows<T>(p, p.x, task, k, steps, channel, columns, place, w.low_rank, w.x, w.delta, scan_rows_of);
  store_image_tile<T>(p, p.y, p.narrow_y, task.batch, k, steps, channel, columns, w.y, w.x);
}

template <typename T, Rule kRule>
void forward_task(const ScanParams& p, const ScanPlan& plan, Task task, const ForwardBuffers<T>& w) {
  const int64_t N = p.states;
  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t place = block - task.block_begin, row = k * p.channels + block * plan.lanes;
      const int64_t columns = columns_of(p, plan, block);
      load_decay_rates<T, kRule>(p.A, row, columns, N, w.A + place * N);
      w.bias[place] = load_channels<T>(p.delta_bias, row, columns);
      w.D[place] = load_channels<T>(p.D, row, columns);
      load_weight<T>(p, row, columns, place, w.low_rank);
    }
    const View& y = result_of(p, p.y, p.narrow_y, k);
    for (task.batch = task.batch_begin; task.batch < task.batch_end; ++task.batch) {
      const int64_t sequence = task.batch * p.routes + k;
      load_all_states<T>(p.initial_state, p, plan, task, k, w.h);
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        const Steps steps = steps_of(p, plan, k, chunk);
        load_tile<T>(p.B, task.batch, k, steps, 0, N, N, w.B);
        load_tile<T>(p.C, task.batch, k, steps, 0, N, N, w.C);
        load_factor<T>(p, task, k, steps, w.low_rank);
        ForwardPrefetcher prefetcher;
        if (chunk + 1 < plan.chunks) prefetcher = {{&p.x, &p.delta, &y, &p.B, &p.C}, p, plan, task, k, chunk + 1};
        if (p.checkpoints && chunk > 0) {
          const int64_t at = ((sequence * plan.checkpoints + chunk - 1) * plan.blocks + task.block_begin) * N;
          std::memcpy(static_cast<Vec<T>*>(p.checkpoints) + at, w.h,
                      static_cast<size_t>((task.block_end - task.block_begin) * N) * sizeof(Vec<T>));
        }
        int64_t block = task.block_begin;
        if constexpr (kRule == Rule::decaying) {
          block = scan_by_rows<T>(p, plan, task, k, steps, w);
        }
        for (; block < task.block_end; ++block) forward_chunk<T, kRule>(p, plan, task, k, block, steps, &prefetcher, w);
      }
      for (int64_t block = task.block_begin; p.last_state && block < task.block_end; ++block) {
        const int64_t row = sequence * p.channels + block * plan.lanes, columns = columns_of(p, plan, block);
        store_states<T>(p.last_state, row, columns, N, w.h + (block - task.block_begin) * N);
      }
    }
  }
}

}  // namespace
