// The adjoint scan. Chunks are walked from the last to the first. Within a chunk the states are recomputed from its
// checkpoint, a few states at a time, so that they stay in the L1 cache and memory does not grow with N.
#pragma once
#include "../common/turns.h"
#include "cpu_backward_rows.h"
#include "cpu_common.h"
#include "cpu_low_rank.h"

namespace {

template <typename T>
struct BackwardBuffers {
  Vec<T>*x, *delta, *slope, *drive, *dy, *ddrive, *ddelta;  // tiles: one register per step, or a row of them
  Vec<T>*decay, *decayed, *phi, *input;                     // kStatesAtOnce registers per step
  Vec<T>*lanes_of_dB, *lanes_of_dC;                         // one register per step, plus kLanes
  Vec<T>* h;                                                // the states before a chunk
  Vec<T>*A, *dh, *bias, *D;                                 // for each block of the task, kept across chunks
  LongSum<T>*dA, *dD, *dbias;                               // for each block of the task, summed over chunks
  T *B, *C, *dB, *dC, *all_dB, *all_dC;                     // (steps, N); dB and dC of one group, and of all groups
  LowRank<T> low_rank;
  LowRankGradients<T> low_rank_gradients;
  BackwardBuffers(Arena& arena, const ScanParams& p, const ScanPlan& plan, const Tasks& tasks) {
    const int64_t blocks = tasks.groups_at_once * plan.blocks_per_group;
    const int64_t row = p.states == 1 ? kBlocksAtOnce : 1;
    for (Vec<T>** tile : {&x, &drive, &dy, &ddrive, &ddelta}) *tile = arena.allocate<Vec<T>>(plan.chunk);
    for (Vec<T>** tile : {&delta, &slope}) *tile = arena.allocate<Vec<T>>(plan.chunk * row);
    for (Vec<T>** lanes : {&lanes_of_dB, &lanes_of_dC}) *lanes = arena.allocate<Vec<T>>(plan.chunk + kLanes<T>);
    for (Vec<T>** states : {&decay, &decayed}) *states = arena.allocate<Vec<T>>(plan.chunk * kStatesAtOnce);
    for (Vec<T>** states : {&phi, &input}) *states = arena.allocate<Vec<T>>(p.zoh ? plan.chunk * kStatesAtOnce : 0);
    h = arena.allocate<Vec<T>>(p.states);
    for (Vec<T>** carried : {&A, &dh}) *carried = arena.allocate<Vec<T>>(blocks * p.states);
    for (Vec<T>** channels : {&bias, &D}) *channels = arena.allocate<Vec<T>>(blocks);
    dA = arena.allocate<LongSum<T>>(blocks * p.states);
    for (LongSum<T>** carried : {&dD, &dbias}) *carried = arena.allocate<LongSum<T>>(blocks);
    for (T** rows : {&B, &C, &dB, &dC, &all_dB, &all_dC}) *rows = arena.allocate<T>(plan.chunk * p.states);
    low_rank = LowRank<T>(arena, p, plan, blocks);
    low_rank_gradients = LowRankGradients<T>(arena, p, plan, blocks);
  }
};

constexpr View kNothing{};
using BackwardPrefetcher = Prefetcher<7>;  // x, delta, dy, dx, ddelta, B and C

// Recomputes one step of S states and saves the adjoint's inputs: e^v, e^v h_{i-1} and, for the zero-order hold, phi(v)
// and phi'(v) drive B. kFirst: the states before the step are zero and need no gradient.
template <typename T, int S, Rule kRule, bool kFirst>
VMDDPM_INLINE void recompute_step(const BackwardBuffers<T>& w, const Vec<T>* a, int64_t n, int64_t states, int64_t i,
                                  Vec<T>* state) {
  using V = Vec<T>;
  const T* B = w.B + i * states + n;
  const V delta = w.delta[i], drive = w.drive[i], dy = w.dy[i];
  V lanes_of_dC[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    const V v = delta * a[s];
    const V decay = kFirst ? zero_decayed<T>(v) : decay_of<kRule>(v);
    const V decayed = kFirst ? decay : decay * state[s];
    V input = drive * B[s];
    if constexpr (kRule == Rule::zero_order_hold) {
      V phi, dphi;
      zoh_lanes<T>(v, decay, phi, dphi);
      w.phi[i * S + s] = phi;
      w.input[i * S + s] = dphi * input;
      input *= phi;
    }
    state[s] = decayed + input;
    w.decay[i * S + s] = decay;
    w.decayed[i * S + s] = decayed;
    lanes_of_dC[s] = dy * state[s];
  }
  if constexpr (S == 1) {
    w.lanes_of_dC[i] = lanes_of_dC[0];
  } else {
    add_lane_sums<T, S>(lanes_of_dC, w.dC + i * states + n);
  }
}

// Recomputes S states over a chunk and adds their dC. `first`: the states before the chunk are zero.
template <typename T, int S, Rule kRule>
void recompute_states(BackwardBuffers<T> w, const Vec<T>* a, const Vec<T>* h, int64_t n, int64_t states,
                      int64_t steps, bool first, BackwardPrefetcher* prefetcher) {
  Vec<T> state[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) state[s] = h[s];
  int64_t i = 0;
  if constexpr (kRule == Rule::decaying) {
    if (first) {
      if (prefetcher) prefetcher->next();
      recompute_step<T, S, kRule, true>(w, a, n, states, 0, state);
      i = 1;
    }
  }
  for (; i < steps; ++i) {
    if (prefetcher) prefetcher->next();
    recompute_step<T, S, kRule, false>(w, a, n, states, i, state);
  }
  if constexpr (S == 1) add_lane_sums_of_steps<T>(w.lanes_of_dC, steps, states, w.dC + n);
}

// S states of one block over one chunk. With v = delta A and the forward h_i = e^v h_{i-1} + phi(v) drive B:
//   g_i = dh + C dy,  dC += <dy, h_i>,  dB += <g phi, drive>,  ddrive += g phi B,
//   dv = g (e^v h_{i-1} + phi'(v) drive B),  ddelta += dv A,  dA += dv delta,  dh <- e^v g.
template <typename T, int S, Rule kRule>
void adjoint_states(BackwardBuffers<T> w, const Vec<T>* a, const Vec<T>* h, Vec<T>* dh, LongSum<T>* dA, int64_t n,
                    int64_t states, int64_t steps, bool first, BackwardPrefetcher* prefetcher) {
  using V = Vec<T>;
  constexpr bool kZoh = kRule == Rule::zero_order_hold;
  recompute_states<T, S, kRule>(w, a, h, n, states, steps, first, prefetcher);
  V adjoint[S], gradA[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    adjoint[s] = dh[s];
    gradA[s] = V{};
  }
  for (int64_t i = steps - 1; i >= 0; --i) {
    const T* B = w.B + i * states + n;
    const T* C = w.C + i * states + n;
    const V delta = w.delta[i], drive = w.drive[i], dy = w.dy[i];
    V ddrive[2] = {}, ddelta[2] = {};
    V lanes_of_dB[S];
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      const V g = adjoint[s] + dy * C[s];
      const V gphi = kZoh ? g * w.phi[i * S + s] : g;
      const V dv = g * (kZoh ? w.decayed[i * S + s] + w.input[i * S + s] : w.decayed[i * S + s]);
      adjoint[s] = g * w.decay[i * S + s];
      lanes_of_dB[s] = gphi * drive;
      ddrive[s & 1] += gphi * B[s];
      ddelta[s & 1] += dv * a[s];
      gradA[s] += dv * delta;
    }
    if constexpr (S == 1) {
      w.lanes_of_dB[i] = lanes_of_dB[0];
    } else {
      add_lane_sums<T, S>(lanes_of_dB, w.dB + i * states + n);
    }
    w.ddrive[i] += ddrive[0] + ddrive[1];
    w.ddelta[i] += ddelta[0] + ddelta[1];
  }
  if constexpr (S == 1) add_lane_sums_of_steps<T>(w.lanes_of_dB, steps, states, w.dB + n);
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    dh[s] = adjoint[s];
    dA[s].add(gradA[s]);
  }
}

// Fills a chunk's tiles: x, delta after bias and softplus, its slope, drive = delta x. Clears ddrive and ddelta.
template <typename T, bool kSoftplus, typename Source>
void prepare_backward(StepRows<Source> x, StepRows<Source> delta, Vec<T> bias, int64_t steps, BackwardBuffers<T> w) {
  for (int64_t i = 0; i < steps; ++i) {
    const Vec<T> input = load_lanes<T>(x.at(i)), raw = load_lanes<T>(delta.at(i)) + bias;
    Vec<T> slope = splat(T(1));
    const Vec<T> step = kSoftplus ? softplus_lanes<T>(raw, &slope) : raw;
    w.x[i] = input;
    w.delta[i] = step;
    w.slope[i] = slope;
    w.drive[i] = step * input;
    w.ddrive[i] = w.ddelta[i] = Vec<T>{};
  }
}

// Applies the chain rule to drive = delta x, softplus and y's term D x: the ddrive tile becomes dx, and ddelta the
// gradient of the raw delta.
template <typename T, Rule kRule>
void finish_backward(int64_t local, int64_t steps, BackwardBuffers<T> w) {
  using V = Vec<T>;
  const V D = w.D[local];
  V dD[4] = {}, dbias[4] = {};
  for (int64_t i = 0; i < steps; ++i) {
    const V ddelta = (w.ddelta[i] * (T(1) / kRateScale<T, kRule>) + w.ddrive[i] * w.x[i]) * w.slope[i];
    w.ddrive[i] = w.ddrive[i] * w.delta[i] + D * w.dy[i];
    w.ddelta[i] = ddelta;
    dD[i & 3] += w.dy[i] * w.x[i];
    dbias[i & 3] += ddelta;
  }
  w.dD[local].add((dD[0] + dD[1]) + (dD[2] + dD[3]));
  w.dbias[local].add((dbias[0] + dbias[1]) + (dbias[2] + dbias[3]));
}

// One block over one chunk: loads tiles, walks all states, stores tiles.
template <typename T, Rule kRule>
void backward_chunk(const ScanGradParams& g, const ScanPlan& plan, const Task& task, int64_t k, int64_t chunk,
                    int64_t block, const Steps& steps, BackwardPrefetcher* prefetcher, const BackwardBuffers<T>& w) {
  using V = Vec<T>;
  const ScanParams& p = g.forward;
  const int64_t N = p.states, channel = block * plan.lanes, columns = columns_of(p, plan, block);
  const int64_t local = block - task.block_begin;
  const bool first = begins_with_zero(p, steps);
  const V* h = states_before<T>(p, plan, task.batch * p.routes + k, chunk, block, w.h);

  const auto prepare = [&](const auto& x, const auto& delta) {
    return p.softplus ? prepare_backward<T, true>(x, delta, w.bias[local], steps.count, w)
                      : prepare_backward<T, false>(x, delta, w.bias[local], steps.count, w);
  };
  with_step_rows<T>(p, p.x, task, k, steps, channel, columns, local, w.low_rank, w.x, w.delta, prepare);
  load_channel_tile<T>(g.dy, task.batch, k, steps, channel, columns, w.dy);

  const V* A = w.A + local * N;
  V* dh = w.dh + local * N;
  LongSum<T>* dA = w.dA + local * N;
  for_states(N, [&](auto at_once, int64_t n) {
    adjoint_states<T, at_once.value, kRule>(w, A + n, h + n, dh + n, dA + n, n, N, steps.count, first, prefetcher);
    prefetcher = nullptr;
  });

  finish_backward<T, kRule>(local, steps.count, w);
  store_image_tile<T>(p, g.dx, g.narrow_dx, task.batch, k, steps, channel, columns, w.ddrive, w.x);
  if (p.rank > 0) return add_low_rank<T>(p, columns, local, steps, w.low_rank, w.ddelta, w.low_rank_gradients);
  store_tile<T>(g.ddelta, task.batch, k, steps, channel, columns, plan.lanes, reinterpret_cast<T*>(w.ddelta), false);
}

// One adjoint step of S states for ddrive alone. kFirst: the adjoint before this step is not needed.
template <typename T, int S, Rule kRule, bool kFirst>
VMDDPM_INLINE void input_step(const BackwardBuffers<T>& w, const Vec<T>* a, int64_t n, int64_t states, int64_t i,
                              Vec<T>* adjoint) {
  using V = Vec<T>;
  const T* B = w.B + i * states + n;
  const T* C = w.C + i * states + n;
  const V delta = w.delta[i], dy = w.dy[i];
  V ddrive[2] = {};
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    const V g = adjoint[s] + dy * C[s];
    V gphi = g;
    if constexpr (!kFirst) {
      const V v = delta * a[s], decay = decay_of<kRule>(v);
      if constexpr (kRule == Rule::zero_order_hold) {
        V phi, dphi;
        zoh_lanes<T>(v, decay, phi, dphi);
        gphi *= phi;
      }
      adjoint[s] = g * decay;
    }
    ddrive[s & 1] += gphi * B[s];
  }
  w.ddrive[i] += ddrive[0] + ddrive[1];
}

// Like adjoint_states, for dx and the gradient of the initial state alone: these need no forward states.
template <typename T, int S, Rule kRule>
void adjoint_of_input(BackwardBuffers<T> w, const Vec<T>* a, Vec<T>* dh, int64_t n, int64_t states, int64_t steps,
                      bool first, BackwardPrefetcher* prefetcher) {
  constexpr bool kShort = kRule != Rule::zero_order_hold;
  Vec<T> adjoint[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) adjoint[s] = dh[s];
  const int64_t end = kShort && first ? 1 : 0;
  for (int64_t i = steps - 1; i >= end; --i) {
    if (prefetcher) prefetcher->next();
    input_step<T, S, kRule, false>(w, a, n, states, i, adjoint);
  }
  if (end == 1) input_step<T, S, kRule, kShort>(w, a, n, states, 0, adjoint);
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) dh[s] = adjoint[s];
}

template <typename T, Rule kRule>
void input_gradient_chunk(const ScanGradParams& g, const ScanPlan& plan, const Task& task, int64_t k, int64_t block,
                          const Steps& steps, BackwardPrefetcher* prefetcher, const BackwardBuffers<T>& w) {
  const ScanParams& p = g.forward;
  const int64_t N = p.states, channel = block * plan.lanes, columns = columns_of(p, plan, block);
  const int64_t local = block - task.block_begin;
  const bool first = begins_with_zero(p, steps);
  const auto prepare = [&](const auto& dy, const auto& rows) {
    for (int64_t i = 0; i < steps.count; ++i) {
      const Vec<T> raw = load_lanes<T>(rows.at(i)) + w.bias[local];
      w.delta[i] = p.softplus ? softplus_lanes<T>(raw) : raw;
      w.dy[i] = load_lanes<T>(dy.at(i));
      w.ddrive[i] = Vec<T>{};
    }
  };
  with_step_rows<T>(p, g.dy, task, k, steps, channel, columns, local, w.low_rank, w.dy, w.delta, prepare);
  for_states(N, [&](auto at_once, int64_t n) {
    adjoint_of_input<T, at_once.value, kRule>(w, w.A + local * N + n, w.dh + local * N + n, n, N, steps.count, first, prefetcher);
    prefetcher = nullptr;
  });
  for (int64_t i = 0; i < steps.count; ++i) w.ddrive[i] = w.ddrive[i] * w.delta[i] + w.D[local] * w.dy[i];
  store_image_tile<T>(p, g.dx, g.narrow_dx, task.batch, k, steps, channel, columns, w.ddrive, w.x);
}

// Sums of dB, dC and the gradient of delta's factor over groups, in group order. Tasks that share a sequence's groups
// add in turn, chunk by chunk, each one chunk behind the task before it, so the sums need no extra memory.
template <typename T>
struct Sums {
  T *dB, *dC, *dfactor;
  Turns *before, *here;  // null if no task adds before, or after, this one
  int64_t chunks = 0;

  // Waits for the task before to finish this chunk. Returns whether there is a sum to add to.
  bool await() {
    ++chunks;
    if (before) wait_for(*before, chunks);
    return before;
  }
  void pass_on() {
    if (here) here->done.store(chunks, std::memory_order_release);
  }
};

// total = rows, or total += rows.
template <typename T>
void add_rows(const T* rows, int64_t count, bool add, T* total) {
  for (int64_t i = 0; i < count; ++i) total[i] = add ? total[i] + rows[i] : rows[i];
}

// Walks all blocks of a task over one chunk, group after group, and adds up their dB and dC.
template <typename T, Rule kRule>
void backward_groups(const ScanGradParams& g, const ScanPlan& plan, const Task& task, int64_t k, int64_t chunk,
                     const Steps& steps, Sums<T>& sums, BackwardPrefetcher* prefetcher, const BackwardBuffers<T>& w) {
  const ScanParams& p = g.forward;
  const int64_t N = p.states;
  struct {
    T *group, *all, *total;
    int64_t columns, width;  // width: row length of `group` and `all`
  } const matrices[] = {
      {w.dB, w.all_dB, sums.dB, N, N},
      {w.dC, w.all_dC, sums.dC, N, N},
      {w.low_rank_gradients.factor, w.low_rank_gradients.all, sums.dfactor, p.rank, w.low_rank_gradients.width()}};
  const auto view_of = [&](T* matrix, int64_t columns) {
    const int64_t sequence = p.length * columns;
    return View{matrix, sizeof(T) == 8 ? DType::f64 : DType::f32, {p.routes * sequence, sequence, columns, 1}};
  };
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    for (const auto& m : matrices) std::memset(m.group, 0, static_cast<size_t>(steps.count * m.width) * sizeof(T));
    const int64_t first = group * plan.blocks_per_group, end = minimum(first + plan.blocks_per_group, plan.blocks);
    int64_t block = first;
    if constexpr (kRule == Rule::decaying) {
      block = adjoint_by_rows<T>(g, plan, task, k, chunk, first, end, steps, w);
    }
    for (; block < end; ++block) backward_chunk<T, kRule>(g, plan, task, k, chunk, block, steps, prefetcher, w);
    const bool begun = group == task.group_begin && sums.await();
    for (const auto& m : matrices) {
      if (m.columns == 0) continue;
      if (begun) load_tile<T>(view_of(m.total, m.columns), task.batch, k, steps, 0, m.columns, m.width, m.all);
      add_rows(m.group, steps.count * m.width, group > 0, m.all);
    }
  }
  for (const auto& m : matrices) {
    if (m.columns == 0) continue;
    store_tile<T, false>(view_of(m.total, m.columns), task.batch, k, steps, 0, m.columns, m.width, m.all);
  }
  sums.pass_on();
}

template <typename T, Rule kRule>
void backward_task(const ScanGradParams& g, const ScanPlan& plan, Task task, Sums<T> sums,
                   const BackwardBuffers<T>& w) {
  const ScanParams& p = g.forward;
  const int64_t N = p.states;
  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t local = block - task.block_begin, row = k * p.channels + block * plan.lanes;
      const int64_t columns = columns_of(p, plan, block);
      load_decay_rates<T, kRule>(p.A, row, columns, N, w.A + local * N);
      w.bias[local] = load_channels<T>(p.delta_bias, row, columns);
      w.D[local] = load_channels<T>(p.D, row, columns);
      load_weight<T>(p, row, columns, local, w.low_rank);
      begin_weight<T>(p, row, columns, local, w.low_rank_gradients);
      for (int64_t n = 0; n < N; ++n) w.dA[local * N + n].clear();
      w.dD[local].clear();
      w.dbias[local].clear();
    }
    for (task.batch = task.batch_begin; task.batch < task.batch_end; ++task.batch) {
      const int64_t sequence = task.batch * p.routes + k;
      load_all_states<T>(g.dlast_state, p, plan, task, k, w.dh);
      for (int64_t chunk = plan.chunks - 1; chunk >= 0; --chunk) {
        const Steps steps = steps_of(p, plan, k, chunk);
        load_tile<T>(p.B, task.batch, k, steps, 0, N, N, w.B);
        load_tile<T>(p.C, task.batch, k, steps, 0, N, N, w.C);
        load_factor<T>(p, task, k, steps, w.low_rank);
        BackwardPrefetcher prefetcher;
        const View& ddelta = p.rank > 0 ? kNothing : g.ddelta;  // a factor's gradient is small
        if (chunk > 0) prefetcher = {{&p.x, &p.delta, &g.dy, &g.dx, &ddelta, &p.B, &p.C}, p, plan, task, k, chunk - 1};
        if (g.only_input) {
          for (int64_t block = task.block_begin; block < task.block_end; ++block) {
            input_gradient_chunk<T, kRule>(g, plan, task, k, block, steps, &prefetcher, w);
          }
        } else {
          backward_groups<T, kRule>(g, plan, task, k, chunk, steps, sums, &prefetcher, w);
        }
      }
      for (int64_t block = task.block_begin; g.dinitial_state && block < task.block_end; ++block) {
        const int64_t row = sequence * p.channels + block * plan.lanes, columns = columns_of(p, plan, block);
        store_states<T>(g.dinitial_state, row, columns, N, w.dh + (block - task.block_begin) * N);
      }
    }
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t local = block - task.block_begin, columns = columns_of(p, plan, block);
      const int64_t row = (task.piece * p.routes + k) * p.channels + block * plan.lanes;
      Vec<T>* const dA = w.A + local * N;  // reuses the buffer: A is no longer needed
      for (int64_t n = 0; n < N; ++n) dA[n] = w.dA[local * N + n].total;
      if (g.dA) store_states<T>(g.dA, row, columns, N, dA);
      if (g.dD) store_channels<T>(g.dD, row, columns, w.dD[local].total);
      if (g.ddelta_bias) store_channels<T>(g.ddelta_bias, row, columns, w.dbias[local].total);
      store_weight<T>(p, g.ddt_proj, row, columns, local, w.low_rank_gradients, w.low_rank.weight);  // scratch
    }
  }
}

}  // namespace
