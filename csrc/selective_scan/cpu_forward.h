// The forward scan. A register holds the channels, a few registers hold their states, and the sequence is walked in
// chunks whose tiles stay in the first-level cache.
#pragma once
#include "cpu_common.h"

namespace {

template <typename T>
struct ForwardBuffers {
  Vec<T>*x, *delta, *drive, *y, *A, *h;
  T *B, *C;
  ForwardBuffers(Arena& arena, const ScanParams& p, const ScanPlan& plan, const Tasks& tasks) {
    const int64_t carried = tasks.groups_at_once * plan.blocks_per_group * p.states;
    for (Vec<T>** tile : {&x, &delta, &drive, &y}) *tile = arena.take<Vec<T>>(plan.chunk);
    for (Vec<T>** states : {&A, &h}) *states = arena.take<Vec<T>>(carried);
    for (T** rows : {&B, &C}) *rows = arena.take<T>(plan.chunk * p.states);
  }
};

// What the recurrence needs of a chunk: delta after bias and softplus, drive = delta x, and y = D x to add to.
template <typename T, bool kSoftplus, typename Source>
void prepare_forward(Rows<Source> x, Rows<Source> delta, Vec<T> bias, Vec<T> D, int64_t steps,
                     ForwardBuffers<T> w) {
  for (int64_t i = 0; i < steps; ++i) {
    const Vec<T> input = load_lanes<T>(x.at(i)), raw = load_lanes<T>(delta.at(i)) + bias;
    const Vec<T> step = kSoftplus ? softplus_lanes<T>(raw, nullptr) : raw;
    w.delta[i] = step;
    w.drive[i] = step * input;
    w.y[i] = D * input;
  }
}

// Eq. 6 and the recurrence for S states of one block over a chunk:
//   h = exp(delta A) h + drive B,  y += C h,  where drive = delta x; B and C are (steps, N) rows.
template <typename T, int S, Rule kRule>
void scan_states(ForwardBuffers<T> w, const Vec<T>* A, Vec<T>* h, int64_t n, int64_t states, int64_t steps) {
  Vec<T> a[S], state[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    a[s] = A[s];
    state[s] = h[s];
  }
  for (int64_t i = 0; i < steps; ++i) {
    const T* B = w.B + i * states + n;
    const T* C = w.C + i * states + n;
    const Vec<T> delta = w.delta[i], drive = w.drive[i];
    Vec<T> y[2] = {};  // summed apart, so that many states do not make one long chain of roundings
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      const Vec<T> v = delta * a[s];
      const Vec<T> decay = decay_of<kRule>(v);
      Vec<T> input = drive * B[s];
      if constexpr (kRule == Rule::zero_order_hold) {
        Vec<T> phi, dphi;
        zoh_lanes<T>(v * (T(1) / kDecayScale<T>), decay, phi, dphi);
        input *= phi;
      }
      state[s] = decay * state[s] + input;
      y[s & 1] += state[s] * C[s];
    }
    w.y[i] += y[0] + y[1];
  }
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) h[s] = state[s];
}

// One block over one chunk: tiles in, all its states, tile out.
template <typename T, Rule kRule>
void forward_chunk(const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t k, int64_t block,
                   const Steps& steps, const ForwardBuffers<T>& w) {
  const int64_t N = p.states, channel = block * plan.lanes, columns = columns_of(p, plan, block);
  const int64_t row = k * p.channels + channel, local = (block - task.block_begin) * N;
  const Vec<T> D = load_channels<T>(p.D, row, columns), bias = load_channels<T>(p.delta_bias, row, columns);
  with_rows<T>(p, task.batch, k, steps, channel, columns, w.x, w.delta, [&](const auto& x, const auto& delta) {
    return p.softplus ? prepare_forward<T, true>(x, delta, bias, D, steps.count, w)
                      : prepare_forward<T, false>(x, delta, bias, D, steps.count, w);
  });
  const Vec<T>* A = w.A + local;
  Vec<T>* h = w.h + local;
  int64_t n = 0;
  for (; n + kStatesAtOnce <= N; n += kStatesAtOnce) {
    scan_states<T, kStatesAtOnce, kRule>(w, A + n, h + n, n, N, steps.count);
  }
  for (; n < N; ++n) scan_states<T, 1, kRule>(w, A + n, h + n, n, N, steps.count);
  store_tile<T>(p.y, task.batch, k, steps, channel, columns, plan.lanes, reinterpret_cast<T*>(w.y), p.shared && k > 0);
}

// Asks for what the block after this one will need, or the first block of the next chunk.
inline void prefetch_forward(const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t k, int64_t chunk,
                             int64_t block) {
  if (++block == task.block_end) {
    block = task.block_begin;
    if (++chunk == plan.chunks) return;
    prefetch_matrices(p, task.batch, k, steps_of(p, plan, k, chunk));
  }
  const Steps steps = steps_of(p, plan, k, chunk);
  const int64_t channel = block * plan.lanes, columns = columns_of(p, plan, block);
  for (const View* view : {&p.x, &p.delta, &p.y}) prefetch_tile(*view, task.batch, k, steps, channel, columns);
}

template <typename T, Rule kRule>
void forward_task(const ScanParams& p, const ScanPlan& plan, const Task& task, const ForwardBuffers<T>& w) {
  const int64_t N = p.states;
  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    const int64_t sequence = task.batch * p.routes + k;
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t local = (block - task.block_begin) * N, channel = block * plan.lanes;
      const int64_t columns = columns_of(p, plan, block);
      load_decay_rates<T>(p.A, k * p.channels + channel, columns, N, w.A + local);
      load_states<T>(p.initial_state, sequence * p.channels + channel, columns, N, w.h + local);
    }
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      const Steps steps = steps_of(p, plan, k, chunk);
      load_tile<T>(p.B, task.batch, k, steps, 0, N, N, w.B);
      load_tile<T>(p.C, task.batch, k, steps, 0, N, N, w.C);
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        if (p.checkpoints) {
          const int64_t at = ((sequence * plan.chunks + chunk) * plan.blocks + block) * N;
          std::memcpy(static_cast<Vec<T>*>(p.checkpoints) + at, w.h + (block - task.block_begin) * N,
                      static_cast<size_t>(N) * sizeof(Vec<T>));
        }
        prefetch_forward(p, plan, task, k, chunk, block);
        forward_chunk<T, kRule>(p, plan, task, k, block, steps, w);
      }
    }
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t row = sequence * p.channels + block * plan.lanes, columns = columns_of(p, plan, block);
      store_states<T>(p.last_state, row, columns, N, w.h + (block - task.block_begin) * N);
    }
  }
}

}  // namespace
