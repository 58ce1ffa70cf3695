// The adjoint scan. Chunks are walked from the last to the first; inside a chunk the states are computed again from
// its checkpoint, a few states at a time, so that they stay in the first-level cache and memory never grows with N.
#pragma once
#include <initializer_list>

#include "cpu_common.h"

namespace {

using vmddpm::ScanGradParams;

template <typename T>
struct BackwardBuffers {
  Vec<T>*x, *delta, *slope, *drive, *dy, *ddrive, *ddelta;  // tiles: one register a step
  Vec<T>*before, *decay, *phi, *dphi;                       // kStatesAtOnce registers a step; `before` one step more
  Vec<T>*A, *dh;                                            // carried over the chunks, for each block of the group
  LongSum<T>*dA, *dD, *dbias;                               // likewise
  T *B, *C, *dB, *dC;                                       // (steps, N)
  BackwardBuffers(Arena& arena, const ScanParams& p, const ScanPlan& plan) {
    for (Vec<T>** tile : {&x, &delta, &slope, &drive, &dy, &ddrive, &ddelta}) *tile = arena.take<Vec<T>>(plan.chunk);
    before = arena.take<Vec<T>>((plan.chunk + 1) * kStatesAtOnce);
    decay = arena.take<Vec<T>>(plan.chunk * kStatesAtOnce);
    phi = arena.take<Vec<T>>(p.zoh ? plan.chunk * kStatesAtOnce : 0);
    dphi = arena.take<Vec<T>>(p.zoh ? plan.chunk * kStatesAtOnce : 0);
    for (Vec<T>** carried : {&A, &dh}) *carried = arena.take<Vec<T>>(plan.blocks_per_group * p.states);
    dA = arena.take<LongSum<T>>(plan.blocks_per_group * p.states);
    for (LongSum<T>** carried : {&dD, &dbias}) *carried = arena.take<LongSum<T>>(plan.blocks_per_group);
    for (T** rows : {&B, &C, &dB, &dC}) *rows = arena.take<T>(plan.chunk * p.states);
  }
};

// S states of one block over one chunk. With v = delta A and the forward h_i = e^v h_{i-1} + phi(v) drive B:
//   g_i = dh + C dy,  dC += <dy, h_i>,  dB += <g phi, drive>,  ddrive += g phi B,
//   dv = g (e^v h_{i-1} + phi'(v) drive B),  ddelta += dv A,  dA += dv delta,  dh <- e^v g.
template <typename T, int S, bool kZoh>
void adjoint_states(const BackwardBuffers<T>& w, const Vec<T>* A, const Vec<T>* h, Vec<T>* dh, LongSum<T>* dA, int64_t n,
                    int64_t states, int64_t steps) {
  using V = Vec<T>;
  V a[S], state[S];
  for (int s = 0; s < S; ++s) {
    a[s] = A[s];
    state[s] = h[s];
  }
  for (int64_t i = 0; i < steps; ++i) {
    const T* B = w.B + i * states + n;
    const V delta = w.delta[i], drive = w.drive[i];
    for (int s = 0; s < S; ++s) {
      const V v = delta * a[s];
      const V decay = exp_lanes(v);
      V input = drive * B[s];
      if (kZoh) {
        zoh_lanes<T>(v, decay, w.phi[i * S + s], w.dphi[i * S + s]);
        input *= w.phi[i * S + s];
      }
      w.before[i * S + s] = state[s];
      w.decay[i * S + s] = decay;
      state[s] = decay * state[s] + input;
    }
  }
  V adjoint[S], gradA[S];
  for (int s = 0; s < S; ++s) {
    w.before[steps * S + s] = state[s];
    adjoint[s] = dh[s];
    gradA[s] = V{};
  }
  for (int64_t i = steps - 1; i >= 0; --i) {
    const T* B = w.B + i * states + n;
    const T* C = w.C + i * states + n;
    T* dB = w.dB + i * states + n;
    T* dC = w.dC + i * states + n;
    const V delta = w.delta[i], drive = w.drive[i], dy = w.dy[i];
    V ddrive{}, ddelta{};
    V lanes_of_dB[S], lanes_of_dC[S];
    for (int s = 0; s < S; ++s) {
      const V decay = w.decay[i * S + s];
      const V g = adjoint[s] + dy * C[s];
      const V gphi = kZoh ? g * w.phi[i * S + s] : g;
      lanes_of_dC[s] = dy * w.before[(i + 1) * S + s];
      lanes_of_dB[s] = gphi * drive;
      ddrive += gphi * B[s];
      adjoint[s] = decay * g;
      V dv = adjoint[s] * w.before[i * S + s];
      if (kZoh) dv += g * w.dphi[i * S + s] * drive * B[s];
      ddelta += dv * a[s];
      gradA[s] += dv * delta;
    }
    add_lane_sums<T, S>(lanes_of_dB, dB);
    add_lane_sums<T, S>(lanes_of_dC, dC);
    w.ddrive[i] += ddrive;
    w.ddelta[i] += ddelta;
  }
  for (int s = 0; s < S; ++s) {
    dh[s] = adjoint[s];
    dA[s].add(gradA[s]);
  }
}

// One block over one chunk: tiles in, all its states, tiles out.
template <typename T, bool kZoh>
void backward_chunk(const ScanGradParams& g, const ScanPlan& plan, const Task& task, int64_t k, int64_t chunk,
                    int64_t block, const Steps& steps, const BackwardBuffers<T>& w) {
  using V = Vec<T>;
  const ScanParams& p = g.forward;
  const int64_t N = p.states, channel = block * plan.lanes, columns = columns_of(p, plan, block);
  const int64_t local = block - task.block_begin, row = k * p.channels + channel;
  const int64_t sequence = task.batch * p.routes + k;
  const V* h = static_cast<const V*>(p.checkpoints) + ((sequence * plan.chunks + chunk) * plan.blocks + block) * N;

  load_channel_tile<T>(p.x, task.batch, k, steps, channel, columns, w.x);
  load_channel_tile<T>(p.delta, task.batch, k, steps, channel, columns, w.delta);
  activate_delta<T>(w.delta, w.slope, load_channels<T>(p.delta_bias, row, columns), p.softplus, steps.count);
  if (g.dy.data) {
    load_channel_tile<T>(g.dy, task.batch, k, steps, channel, columns, w.dy);
  } else {
    std::memset(w.dy, 0, static_cast<size_t>(steps.count) * sizeof(V));
  }
  for (int64_t i = 0; i < steps.count; ++i) {
    w.drive[i] = w.delta[i] * w.x[i];
    w.ddrive[i] = w.ddelta[i] = V{};
  }

  const V* A = w.A + local * N;
  V* dh = w.dh + local * N;
  LongSum<T>* dA = w.dA + local * N;
  int64_t n = 0;
  for (; n + kStatesAtOnce <= N; n += kStatesAtOnce) {
    adjoint_states<T, kStatesAtOnce, kZoh>(w, A + n, h + n, dh + n, dA + n, n, N, steps.count);
  }
  for (; n < N; ++n) adjoint_states<T, 1, kZoh>(w, A + n, h + n, dh + n, dA + n, n, N, steps.count);

  // drive = delta x and y has D x in it; the tiles of ddrive and ddelta become those of dx and of the raw delta.
  const V D = load_channels<T>(p.D, row, columns);
  V dD[4] = {}, dbias[4] = {};
  for (int64_t i = 0; i < steps.count; ++i) {
    const V ddelta = (w.ddelta[i] + w.ddrive[i] * w.x[i]) * w.slope[i];
    w.ddrive[i] = w.ddrive[i] * w.delta[i] + D * w.dy[i];
    w.ddelta[i] = ddelta;
    dD[i & 3] += w.dy[i] * w.x[i];
    dbias[i & 3] += ddelta;
  }
  w.dD[local].add((dD[0] + dD[1]) + (dD[2] + dD[3]));
  w.dbias[local].add((dbias[0] + dbias[1]) + (dbias[2] + dbias[3]));
  store_tile<T>(g.dx, task.batch, k, steps, channel, columns, plan.lanes, reinterpret_cast<T*>(w.ddrive),
                p.shared && k > 0);
  store_tile<T>(g.ddelta, task.batch, k, steps, channel, columns, plan.lanes, reinterpret_cast<T*>(w.ddelta), false);
}

template <typename T, bool kZoh>
void backward_task(const ScanGradParams& g, const ScanPlan& plan, const Task& task, const BackwardBuffers<T>& w) {
  const ScanParams& p = g.forward;
  const int64_t N = p.states;
  const View rows{nullptr, DType::f32, {p.routes * p.length * N, p.length * N, N, 1}};
  const int64_t group_offset = task.group * p.batch * p.routes * p.length * N;
  View dB = rows, dC = rows;
  dB.data = static_cast<T*>(g.dB) + group_offset;
  dC.data = static_cast<T*>(g.dC) + group_offset;

  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    const int64_t sequence = task.batch * p.routes + k;
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t local = block - task.block_begin, channel = block * plan.lanes;
      const int64_t columns = columns_of(p, plan, block);
      load_states<T>(p.A, k * p.channels + channel, columns, N, w.A + local * N);
      load_states<T>(g.dlast_state, sequence * p.channels + channel, columns, N, w.dh + local * N);
      for (int64_t n = 0; n < N; ++n) w.dA[local * N + n].clear();
      w.dD[local].clear();
      w.dbias[local].clear();
    }
    for (int64_t chunk = plan.chunks - 1; chunk >= 0; --chunk) {
      const Steps steps = steps_of(p, plan, k, chunk);
      load_tile<T>(p.B, task.batch, k, steps, 0, N, N, w.B);
      load_tile<T>(p.C, task.batch, k, steps, 0, N, N, w.C);
      const size_t bytes = static_cast<size_t>(steps.count * N) * sizeof(T);
      std::memset(w.dB, 0, bytes);
      std::memset(w.dC, 0, bytes);
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        backward_chunk<T, kZoh>(g, plan, task, k, chunk, block, steps, w);
      }
      store_tile<T>(dB, task.batch, k, steps, 0, N, N, w.dB, false);
      store_tile<T>(dC, task.batch, k, steps, 0, N, N, w.dC, false);
    }
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t local = block - task.block_begin, columns = columns_of(p, plan, block);
      const int64_t row = sequence * p.channels + block * plan.lanes;
      for (int64_t n = 0; n < N; ++n) {
        store_state<T>(g.dA, row, columns, N, n, w.dA[local * N + n].total);
        if (g.dinitial_state) store_state<T>(g.dinitial_state, row, columns, N, n, w.dh[local * N + n]);
      }
      if (g.dD) store_channels<T>(g.dD, row, columns, w.dD[local].total);
      if (g.ddelta_bias) store_channels<T>(g.ddelta_bias, row, columns, w.dbias[local].total);
    }
  }
}

}  // namespace
