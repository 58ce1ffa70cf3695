// The forward scan. A register holds the channels, a few registers hold their states, and the sequence is walked in
// chunks whose tiles stay in the first-level cache.
#pragma once
#include "cpu_common.h"

namespace {

template <typename T>
struct ForwardBuffers {
  Vec<T>*x, *delta, *drive, *y, *A, *h;
  T *B, *C;
  ForwardBuffers(Arena& arena, const ScanParams& p, const ScanPlan& plan) {
    x = arena.take<Vec<T>>(plan.chunk);
    delta = arena.take<Vec<T>>(plan.chunk);
    drive = arena.take<Vec<T>>(plan.chunk);
    y = arena.take<Vec<T>>(plan.chunk);
    A = arena.take<Vec<T>>(plan.blocks_per_group * p.states);
    h = arena.take<Vec<T>>(plan.blocks_per_group * p.states);
    B = arena.take<T>(plan.chunk * p.states);
    C = arena.take<T>(plan.chunk * p.states);
  }
};

// Eq. 6 and the recurrence for S states of one block over a chunk:
//   h = exp(delta A) h + drive B,  y += C h,  where drive = delta x; B and C are (steps, N) rows.
template <typename T, int S, bool kZoh>
void scan_states(const ForwardBuffers<T>& w, const Vec<T>* A, Vec<T>* h, int64_t n, int64_t states, int64_t steps) {
  Vec<T> a[S], state[S];
  for (int s = 0; s < S; ++s) {
    a[s] = A[s];
    state[s] = h[s];
  }
  for (int64_t i = 0; i < steps; ++i) {
    const T* B = w.B + i * states + n;
    const T* C = w.C + i * states + n;
    const Vec<T> delta = w.delta[i], drive = w.drive[i];
    Vec<T> y{};  // summed apart, so that many states do not make one long chain of roundings
    for (int s = 0; s < S; ++s) {
      const Vec<T> v = delta * a[s];
      const Vec<T> decay = exp_lanes(v);
      Vec<T> input = drive * B[s];
      if (kZoh) {
        Vec<T> phi, dphi;
        zoh_lanes<T>(v, decay, phi, dphi);
        input *= phi;
      }
      state[s] = decay * state[s] + input;
      y += state[s] * C[s];
    }
    w.y[i] += y;
  }
  for (int s = 0; s < S; ++s) h[s] = state[s];
}

template <typename T, bool kZoh>
void forward_task(const ScanParams& p, const ScanPlan& plan, const Task& task, const ForwardBuffers<T>& w) {
  const int64_t N = p.states;
  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    const int64_t sequence = task.batch * p.routes + k;
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t local = (block - task.block_begin) * N, channel = block * plan.lanes;
      const int64_t columns = columns_of(p, plan, block);
      load_states<T>(p.A, k * p.channels + channel, columns, N, w.A + local);
      load_states<T>(p.initial_state, sequence * p.channels + channel, columns, N, w.h + local);
    }
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      const Steps steps = steps_of(p, plan, k, chunk);
      load_tile<T>(p.B, task.batch, k, steps, 0, N, N, w.B);
      load_tile<T>(p.C, task.batch, k, steps, 0, N, N, w.C);
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t channel = block * plan.lanes, columns = columns_of(p, plan, block);
        Vec<T>* h = w.h + (block - task.block_begin) * N;
        const Vec<T>* A = w.A + (block - task.block_begin) * N;
        if (p.checkpoints) {
          const int64_t at = ((sequence * plan.chunks + chunk) * plan.blocks + block) * N;
          std::memcpy(static_cast<Vec<T>*>(p.checkpoints) + at, h, static_cast<size_t>(N) * sizeof(Vec<T>));
        }
        load_channel_tile<T>(p.x, task.batch, k, steps, channel, columns, w.x);
        load_channel_tile<T>(p.delta, task.batch, k, steps, channel, columns, w.delta);
        activate_delta<T>(w.delta, nullptr, load_channels<T>(p.delta_bias, k * p.channels + channel, columns),
                          p.softplus, steps.count);
        const Vec<T> D = load_channels<T>(p.D, k * p.channels + channel, columns);
        for (int64_t i = 0; i < steps.count; ++i) {
          w.drive[i] = w.delta[i] * w.x[i];
          w.y[i] = D * w.x[i];
        }
        int64_t n = 0;
        for (; n + kStatesAtOnce <= N; n += kStatesAtOnce) {
          scan_states<T, kStatesAtOnce, kZoh>(w, A + n, h + n, n, N, steps.count);
        }
        for (; n < N; ++n) scan_states<T, 1, kZoh>(w, A + n, h + n, n, N, steps.count);
        store_tile<T>(p.y, task.batch, k, steps, channel, columns, plan.lanes, reinterpret_cast<T*>(w.y),
                      p.shared && k > 0);
      }
    }
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t row = sequence * p.channels + block * plan.lanes, columns = columns_of(p, plan, block);
      for (int64_t n = 0; n < N; ++n) {
        store_state<T>(p.last_state, row, columns, N, n, w.h[(block - task.block_begin) * N + n]);
      }
    }
  }
}

}  // namespace
