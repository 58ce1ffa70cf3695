// The adjoint scan of a single state.
#pragma once
#include "cpu_rows.h"

namespace {

using vmddpm::ScanGradParams;

// The states of a block before a chunk: its checkpoint, or the initial states, loaded into `room`.
template <typename T>
const Vec<T>* states_before(const ScanParams& p, const ScanPlan& plan, int64_t sequence, int64_t chunk, int64_t block,
                            Vec<T>* room) {
  if (chunk > 0) {
    const int64_t at = (sequence * plan.checkpoints + chunk - 1) * plan.blocks + block;
    return static_cast<const Vec<T>*>(p.checkpoints) + at * p.states;
  }
  const int64_t row = sequence * p.channels + block * plan.lanes;
  load_states<T>(p.initial_state, row, columns_of(p, plan, block), p.states, room);
  return room;
}

// target[i * states] += the sum over the lanes of lanes[i]. Runs the butterfly of add_lane_sums over steps, not states.
template <typename T>
void add_lane_sums_of_steps(Vec<T>* lanes, int64_t steps, int64_t states, T* target) {
  constexpr int W = kLanes<T>;
  if (steps <= 2) {  // faster one by one
    for (int64_t i = 0; i < steps; ++i) add_lane_sums<T, 1>(lanes + i, target + i * states);
    return;
  }
  for (int64_t i = 0; i < W; ++i) lanes[steps + i] = Vec<T>{};
  for (int64_t first = 0; first < steps; first += W) {
    T sums[W] = {};
    add_lane_sums<T, W>(lanes + first, sums);
    for (int64_t i = first; i < minimum(first + W, steps); ++i) target[i * states] += sums[i - first];
  }
}

// Blocks walked together over a chunk, forward and back: few enough that carried values stay in registers and saved
// steps in the L1 cache.
constexpr int kBlocksAtOnce = 2;

// Parameters and carried values of S blocks of channels; dA, dD and dbias are sums over a chunk.
template <typename T, int S>
struct AdjointChannels {
  Vec<T> A[S], bias[S], D[S];
  Vec<T> h[S], dh[S], dA[S], dD[S], dbias[S];
};

// Values that the forward walk saves for the walk back, S registers per step.
template <typename T>
struct AdjointTiles {
  Vec<T>*delta, *slope, *decay, *decayed;
};

// Pointers to the channels of one step (InputRow, ResultRow) and of all steps (InputRows, ResultRows). `sum`: dx of the
// earlier routes, to be added.
template <typename Source>
struct InputRow {
  const Source *x, *delta, *dy;
};
template <typename Source>
struct InputRows {
  PixelRows<const Source> x, delta, dy;
  InputRow<Source> at(int64_t pixel) const { return {x.at(pixel), delta.at(pixel), dy.at(pixel)}; }
};
template <typename T, typename Source, typename Target>
struct ResultRow {
  const T* sum;
  Target* dx;
  Source* ddelta;
};
template <typename T, typename Source, typename Target>
struct ResultRows {
  PixelRows<const T> sum;
  PixelRows<Target> dx;
  PixelRows<Source> ddelta;
  ResultRow<T, Source, Target> at(int64_t pixel) const {
    return {sum.at(pixel), dx.at(pixel), ddelta.at(pixel)};
  }
};

// Recomputes a chunk of a route; `first`: the state before it is zero. Adds dy h to lanes_of_dC; its lane sums are dC.
// Prefetches dx and ddelta for the walk back, and the inputs of the preceding chunk, which is next.
template <typename T, bool kSoftplus, int S, typename Source>
VMDDPM_NOINLINE void recompute_rows(InputRows<Source> in, PixelRows<const char> dx, PixelRows<const char> ddelta,
                                    Steps chunk, bool first, const AdjointChannels<T, S>& of, AdjointTiles<T> tiles,
                                    const T* B, Vec<T>* lanes_of_dC) {
  constexpr int W = kLanes<T>;
  Vec<T> state[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) state[s] = of.h[s];
  for (int64_t i = 0; i < chunk.count; ++i) {
    // Past the end of the chunk, go on from the start of the preceding one, within the sequence.
    const int64_t ahead = i + prefetch_distance(S), before = minimum(ahead - 2 * chunk.count, 0);
    const int64_t next = ahead < chunk.count ? ahead : before < -chunk.first ? -chunk.first : before;
    const int64_t pixel = chunk.pixel(i);
    const auto row = in.at(pixel), later = in.at(chunk.pixel(next));
    const char *dx_later = dx.at(pixel), *ddelta_later = ddelta.at(pixel);
    Vec<T> lanes = lanes_of_dC[i];
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      prefetch(later.x + s * W);
      prefetch(later.delta + s * W);
      prefetch(later.dy + s * W);
      prefetch(dx_later + s * kVectorBytes);
      prefetch(ddelta_later + s * kVectorBytes);
      const Vec<T> x = load_lanes<T>(row.x + s * W), dy = load_lanes<T>(row.dy + s * W);
      const Vec<T> raw = load_lanes<T>(row.delta + s * W) + of.bias[s];
      Vec<T> slope = splat(T(1));
      const Vec<T> delta = kSoftplus ? softplus_lanes<T>(raw, &slope) : raw;
      const Vec<T> v = delta * of.A[s];
      Vec<T> decay;
      if (first && i == 0) {
        decay = zero_decayed<T>(v);
      } else {
        decay = decay_lanes(v);
      }
      const Vec<T> decayed = decay * state[s];
      state[s] = decayed + delta * x * B[i];
      const int64_t at = i * S + s;
      tiles.delta[at] = delta;
      tiles.slope[at] = slope;
      tiles.decay[at] = decay;
      tiles.decayed[at] = decayed;
      lanes += dy * state[s];
    }
    lanes_of_dC[i] = lanes;
  }
}

// The walk back: adjoint_states for one state and Mamba's rule. Adds g drive to lanes_of_dB; its lane sums are dB.
template <typename T, bool kAdd, int S, typename Source, typename Target>
VMDDPM_NOINLINE void adjoint_rows(InputRows<Source> in, ResultRows<T, Source, Target> out, Steps chunk,
                                  AdjointChannels<T, S>& of, AdjointTiles<T> tiles, const T* B, const T* C,
                                  Vec<T>* lanes_of_dB) {
  constexpr int W = kLanes<T>;
  AdjointChannels<T, S> w = of;
  for (int64_t i = chunk.count - 1; i >= 0; --i) {
    const int64_t pixel = chunk.pixel(i);
    const auto from = in.at(pixel);
    const auto to = out.at(pixel);
    Vec<T> lanes = lanes_of_dB[i];
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      const int64_t at = i * S + s;
      const Vec<T> x = load_lanes<T>(from.x + s * W), dy = load_lanes<T>(from.dy + s * W);
      const Vec<T> delta = tiles.delta[at];
      const Vec<T> g = w.dh[s] + dy * C[i];
      const Vec<T> dv = g * tiles.decayed[at], ddrive = g * B[i];
      w.dh[s] = g * tiles.decay[at];
      lanes += g * (delta * x);
      const Vec<T> ddelta = (dv * (w.A[s] * (T(1) / kDecayScale<T>)) + ddrive * x) * tiles.slope[at];
      w.dA[s] += dv * delta;
      w.dD[s] += dy * x;
      w.dbias[s] += ddelta;
      store_lanes<T>(to.ddelta + s * W, ddelta);
      const Vec<T> dx = ddrive * delta + w.D[s] * dy;
      store_lanes<T>(to.dx + s * W, kAdd ? load_lanes<T>(to.sum + s * W) + dx : dx);
    }
    lanes_of_dB[i] = lanes;
  }
  of = w;
}

// S blocks over a chunk, forward and back.
template <typename T, int S, typename Source, typename Target, typename Buffers>
void adjoint_blocks(const ScanGradParams& g, const ScanPlan& plan, const Task& task, int64_t k, int64_t chunk,
                    int64_t block, const Steps& steps, const View& dx, const Buffers& w) {
  const ScanParams& p = g.forward;
  const int64_t local = block - task.block_begin, column = block * plan.lanes;
  AdjointChannels<T, S> of{};
  for (int s = 0; s < S; ++s) {
    of.A[s] = w.A[local + s];
    of.bias[s] = w.bias[local + s];
    of.D[s] = w.D[local + s];
    of.dh[s] = w.dh[local + s];
    const Vec<T>* const h = states_before<T>(p, plan, task.batch * p.routes + k, chunk, block + s, of.h + s);
    if (chunk > 1) prefetch(h - plan.blocks);  // the preceding chunk is next
    of.h[s] = *h;
  }
  const auto rows = [&](auto* data, const View& view) {
    return pixel_rows(data, view, task.batch, k, column);
  };
  const InputRows<Source> in{rows(static_cast<const Source*>(p.x.data), p.x),
                             rows(static_cast<const Source*>(p.delta.data), p.delta),
                             rows(static_cast<const Source*>(g.dy.data), g.dy)};
  const ResultRows<T, Source, Target> out{rows(static_cast<const T*>(g.dx.data), g.dx),
                                          rows(static_cast<Target*>(dx.data), dx),
                                          rows(static_cast<Source*>(g.ddelta.data), g.ddelta)};
  const AdjointTiles<T> tiles{w.delta, w.slope, w.decay, w.decayed};
  const auto there = [&](auto softplus) {
    recompute_rows<T, softplus.value>(in, bytes_of(out.dx), bytes_of(out.ddelta), steps,
                                      begins_with_zero(p, steps), of, tiles, w.B, w.lanes_of_dC);
  };
  const auto back = [&](auto add) {
    adjoint_rows<T, add.value>(in, out, steps, of, tiles, w.B, w.C, w.lanes_of_dB);
  };
  p.softplus ? there(std::true_type()) : there(std::false_type());
  p.sum_routes && k > 0 ? back(std::true_type()) : back(std::false_type());
  for (int s = 0; s < S; ++s) {
    w.dh[local + s] = of.dh[s];
    w.dA[local + s].add(of.dA[s]);
    w.dD[local + s].add(of.dD[s]);
    w.dbias[local + s].add(of.dbias[s]);
  }
}

// Walks a chunk by rows, if all tensors have rows, for those of the blocks begin .. end that use all lanes, and adds to
// dB and dC. Returns the first remaining block.
template <typename T, typename Buffers>
int64_t adjoint_by_rows(const ScanGradParams& g, const ScanPlan& plan, const Task& task, int64_t k, int64_t chunk,
                        int64_t begin, int64_t end, const Steps& steps, const Buffers& w) {
  const ScanParams& p = g.forward;
  const View& dx = result_of(p, g.dx, g.narrow_dx, k);
  bool rows = p.states == 1 && p.rank == 0 && g.dy.data;
  for (const View* view : {&p.delta, &g.dy, &g.ddelta}) rows = rows && view->dtype == p.x.dtype;
  for (const View* view : {&p.x, &p.delta, &g.dy, &g.ddelta, &g.dx, &dx}) rows = rows && has_rows(*view);
  end = whole_blocks_end(p, plan, end);
  if (!rows || begin >= end) return begin;
  const bool taken = with_row_types<T>(p.x.dtype, dx.dtype, [&](auto source, auto target) {
    using Source = decltype(source);
    using Target = decltype(target);
    for (Vec<T>* lanes : {w.lanes_of_dB, w.lanes_of_dC}) {
      std::memset(static_cast<void*>(lanes), 0, static_cast<size_t>(steps.count) * sizeof(Vec<T>));
    }
    int64_t block = begin;
    for (; block + kBlocksAtOnce <= end; block += kBlocksAtOnce) {
      adjoint_blocks<T, kBlocksAtOnce, Source, Target>(g, plan, task, k, chunk, block, steps, dx, w);
    }
    for (; block < end; ++block) adjoint_blocks<T, 1, Source, Target>(g, plan, task, k, chunk, block, steps, dx, w);
    add_lane_sums_of_steps<T>(w.lanes_of_dB, steps.count, 1, w.dB);
    add_lane_sums_of_steps<T>(w.lanes_of_dC, steps.count, 1, w.dC);
  });
  return taken ? end : begin;
}

}  // namespace
