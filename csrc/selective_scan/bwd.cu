// The adjoint scan. A segment's chunks are walked from the last to the first. Each is replayed from its checkpoint,
// keeping the states at every few steps in shared memory, and then walked backwards: the states and decays of those few
// steps are computed again into registers, where the adjoint recurrence reads them.
#include "batch_part.h"
#include "cuda_adjoint.h"
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

// This thread's place in its block.
struct Seat {
  int lane, slice, tile;              // of its unit, and its unit
  int column;                         // its first channel within the block
  VMDDPM_DEVICE explicit Seat(const BackwardArguments& a)
      : lane(opaque(thread()) % kUnit),
        slice(opaque(thread()) / kUnit & ((1 << a.log2_slices) - 1)),
        tile(opaque(thread()) / kUnit >> a.log2_slices),
        column(tile * kWarp + 2 * lane) {}
};

// The sum of a step's Drive over slices that lie `apart` from one another.
template <typename Acc>
VMDDPM_DEVICE void sum_of_slices(const Drive<Acc>* from, int slices, int apart, Acc (&sum)[4]) {
  const auto add = [&](int g) {
    Acc more[4];
    load_row(from[g * apart].value, more);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += more[j];
  };
  load_row(from[0].value, sum);
  if (slices == kMostUnits) {
#pragma unroll
    for (int g = 1; g < kMostUnits; ++g) add(g);
  } else {
#pragma unroll 1
    for (int g = 1; g < slices; ++g) add(g);
  }
}

// What the slices of a strip of steps have, added up: dx and ddelta of its pairs. drive = delta x, and y has D x in it.
template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void combine_slices(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
                                  int begin, const Acc* skips, const Drive<Acc>* partial, Drive<Acc>* drive,
                                  Pair<Acc>* dy, Acc (&dD)[2], Acc (&dbias)[2]) {
  const int slices = 1 << a.log2_slices;
  const PairSteps own(4 + a.log2_tiles, slices);
  const int count = w.valid - own.column();
  if (count <= 0) return;
  const char* x_lane = lane_at<kPairs>(a.x, w.x, own.column());
  char* dx_lane = lane_at<kPairs>(a.dx, w.dx, own.column());
  char* ddelta_lane = lane_at<kPairs>(a.ddelta, w.ddelta, own.column());
  partial += (own.tile() << a.log2_slices) * kStrip * kUnit + own.lane();
  Acc skip[2];
  load_row(skips + own.column(), skip);
#pragma unroll 1
  for (int u = own.first; u < kStrip; u += own.stride) {
    const int t = begin + u;
    if (t >= steps.count) break;  // there the state goes on as it is, and its gradient with it
    const int32_t pixel = steps.pixels[t];
    RawPair<E> raw;
    fetch_pair<kPairs>(a.x, x_lane, pixel, count, raw);
    Drive<Acc>& step = drive[own.place() + t * kPitchOfPairs];
    Pair<Acc>& gradients = dy[own.place() + t * kPitchOfPairs];
    Acc total[4], delta[2], x[2], gradient[2], dx[2], ddelta[2], slope[2] = {Acc(1), Acc(1)};
    sum_of_slices(partial + u * kUnit, slices, kStrip * kUnit, total);
    load_row(step.value, delta);
    load_row(gradients.value, gradient);
    values_of<kPairs>(raw, x);
    if (a.softplus) {
#pragma unroll
      for (int j = 0; j < 2; ++j) slope[j] = softplus_slope(delta[j]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ddelta[j] = (total[j] + total[2 + j] * x[j]) * slope[j];
      dx[j] = total[2 + j] * delta[j] + skip[j] * gradient[j];
      dD[j] += gradient[j] * x[j];
      dbias[j] += ddelta[j];
    }
    if (!kPairs && a.dx.by_steps) {
      store_row(gradients.value, dx);
    } else {
      store_pair<kPairs, E>(a.dx, dx_lane, pixel, count, w.adds, dx);
    }
    if (!kPairs && a.ddelta.by_steps) {
      store_row(step.value, ddelta);
    } else {
      store_pair<kPairs, E>(a.ddelta, ddelta_lane, pixel, count, a.add, ddelta);
    }
  }
}

// And what its tiles have: rows of dB and dC, n states at once.
template <int kRows, int n, typename Acc>
VMDDPM_DEVICE void combine_tiles(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
                                 int begin, int tiles, int log2_states, const Acc* sums) {
  const int share = 2 * kRows << log2_states;  // of a tile
#pragma unroll 1
  for (int i = opaque(thread()) * n; i < share; i += threads() * n) {
    const int state = i & ((1 << log2_states) - 1), row = i >> log2_states, u = row & (kRows - 1);
    if (begin + u >= steps.count || state >= w.states) continue;
    Acc sum[n], more[n];
    load_row(sums + i, sum);
#pragma unroll 1
    for (int j = 1; j < tiles; ++j) {
      load_row(sums + j * share + i, more);
#pragma unroll
      for (int k = 0; k < n; ++k) sum[k] += more[k];
    }
    const int64_t element = steps.pixels[begin + u] * a.states + state;
    store_row(static_cast<Acc*>(row < kRows ? a.dB : a.dC) + w.matrices + element, sum);
  }
}

template <typename E, int S, bool kZoh>
VMDDPM_KERNEL(kBackwardThreads, kZoh || sizeof(E) == 8 ? 1 : kBackwardBlocks) scan_backward(VMDDPM_ARGUMENTS(BackwardArguments) a) {
  using Acc = std::conditional_t<sizeof(E) == 8, double, float>;
  constexpr int kSub = sub_steps(S, sizeof(Acc) == 8, kZoh), kSums = 2 * kSub * S;
  const Seat me(a);
  const int slices = 1 << a.log2_slices;
  const int log2_states = log2_of(S) + a.log2_slices, log2_pairs = 4 + a.log2_tiles;
  const int first = me.slice * S;  // of this thread's states among those of the launch
  char* shared = gpu::shared();
  Work& w = *reinterpret_cast<Work*>(shared + a.at.work);
  int32_t* pixels = reinterpret_cast<int32_t*>(shared + a.at.pixels);
  Drive<Acc>* drive = reinterpret_cast<Drive<Acc>*>(shared + a.at.drive);
  Pair<Acc>* dy = reinterpret_cast<Pair<Acc>*>(shared + a.at.dy);
  Pack<Acc, 2 * S>* matrices = reinterpret_cast<Pack<Acc, 2 * S>*>(shared + a.at.matrices);
  Drive<Acc>* partial = reinterpret_cast<Drive<Acc>*>(shared + a.at.partial);
  Drive<Acc>* totals = reinterpret_cast<Drive<Acc>*>(shared + a.at.totals);
  Acc* sums = reinterpret_cast<Acc*>(shared + a.at.sums);
  Pack<Acc, 2 * S>* history = reinterpret_cast<Pack<Acc, 2 * S>*>(shared + a.at.history) + thread();
  Acc* bias = reinterpret_cast<Acc*>(shared + a.at.bias);
  Acc* skip = reinterpret_cast<Acc*>(shared + a.at.skip);
  const int own = me.tile * kTilePairs + me.lane;
  // At the sub-step whose first step is `first`, `in_strip` steps from the first of its strip.
  const auto rows_at = [=](int first, int in_strip) -> Rows<Acc, S> {
    return {drive + own + first * kPitchOfPairs, dy + own + first * kPitchOfPairs, matrices + me.slice * kMatrixPitch + first,
            partial + (thread() / kUnit * kStrip + in_strip) * kUnit + me.lane};
  };
  // The element of dB or dC that lane_sums leaves in this lane, and its place among those of the first steps of a strip.
  const int element = me.lane / (kUnit / kSums);
  Acc* own_sum = sums + (((2 * me.tile + element / (kSub * S)) * kStrip + element / S % kSub) << log2_states) + first +
                 element % S;

  if (thread() == 0) begin_block(a, log2_states, w);
  barrier();
  do {
    barrier();  // the route before this one is done with shared memory
    if (thread() == 0) next_route(a, w);
    barrier();
    Acc rates[2 * S], h[2 * S], dh[2 * S];
    // Sums over the steps, each chunk's by itself first: a long sequence is not one long chain of roundings.
    Acc dA[2 * S] = {};
    const Acc none[4] = {};
    store_row(totals[thread()].value, none);
    load_parameters(a, w, bias, skip);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Acc one[S];
      load_rates(a, w, me.column + j, first, one);
#pragma unroll
      for (int s = 0; s < S; ++s) rates[j * S + s] = one[s];
      load_start(a, w, me.column + j, first, one);
#pragma unroll
      for (int s = 0; s < S; ++s) dh[j * S + s] = one[s];
    }
    const int chunks = (w.steps + kChunk - 1) / kChunk;
    fetch_pixels(w, chunks - 1, pixels);

#pragma unroll 1
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
      wait_copies<0>();
      barrier();
      const ChunkSteps steps = steps_of(w, chunk, pixels);
      const int padded = (steps.count + kStrip - 1) / kStrip * kStrip, last = (steps.count - 1) / kSub;
      decode_channels<E>(a, w, steps, padded, bias, drive, dy);
      const Seat seat(a);
      load_piece<2, S>(a, w, seat.column, seat.slice * S, checkpoint<Acc>(a, w, chunk), h);
      decode_matrices<E, Acc, S>(a, w, steps, matrices);
      fetch_pixels(w, chunk - 1, pixels);
      barrier();

#pragma unroll 1
      for (int sub = 0; sub < last; ++sub) {
        store_row(history[sub * threads()].value, h);
        replay_steps<S, kSub, kZoh>(rows_at(sub * kSub, 0), rates, h);
      }
      Acc chunk_dA[2 * S] = {}, dD[2] = {}, dbias[2] = {};
#pragma unroll 1
      for (int sub = last; sub >= 0; --sub) {
        const int in_strip = sub * kSub & (kStrip - 1);
        if (sub < last) load_row(history[sub * threads()].value, h);
        Rows<Acc, S> rows = rows_at(sub * kSub, in_strip);
        const Acc sum = adjoint_steps<S, kSub, kZoh, kUnit>(rows, rates, h, dh, chunk_dA, me.lane);
        if (me.lane % (kUnit / kSums) == 0) own_sum[in_strip << log2_states] = sum;
        if (in_strip) continue;
        barrier();

        if (a.pairs) {
          combine_slices<true, E>(a, w, steps, sub * kSub, skip, partial, drive, dy, dD, dbias);
        } else {
          combine_slices<false, E>(a, w, steps, sub * kSub, skip, partial, drive, dy, dD, dbias);
        }
        if (S * slices >= 4 && a.states % 4 == 0) {
          combine_tiles<kStrip, 4>(a, w, steps, sub * kSub, 1 << a.log2_tiles, log2_states, sums);
        } else {
          combine_tiles<kStrip, 1>(a, w, steps, sub * kSub, 1 << a.log2_tiles, log2_states, sums);
        }
        barrier();
      }
      if (!a.pairs && a.dx.by_steps) {
        store_columns<E, Acc>(a.dx, w.dx, steps, w.valid, w.adds,
                              [=](int place, int j) { return dy[place].value[j]; });
      }
      if (!a.pairs && a.ddelta.by_steps) {
        store_columns<E, Acc>(a.ddelta, w.ddelta, steps, w.valid, a.add,
                              [=](int place, int j) { return drive[place].value[j]; });
      }
#pragma unroll
      for (int i = 0; i < 2 * S; ++i) dA[i] += chunk_dA[i];
      Acc total[4];
      load_row(totals[thread()].value, total);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        total[j] += dD[j];
        total[2 + j] += dbias[j];
      }
      store_row(totals[thread()].value, total);
    }

    const int64_t piece = ((w.batch * a.segments + w.segment) * a.routes + w.route) * a.channels;
    const Seat seat(a);
    const int first = seat.slice * S;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (seat.column + j >= w.valid) continue;
      Acc* to = static_cast<Acc*>(a.dA) + (piece + w.channel + seat.column + j) * a.states + a.first_state + first;
      Acc one[S];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        one[s] = dh[j * S + s];
        if (first + s < w.states) to[s] = dA[j * S + s];
      }
      if (a.dstart && w.segment == 0) store_states(a, w, seat.column + j, first, one, static_cast<Acc*>(a.dstart));
    }
    // Each thread has summed the steps of one pair that fell to it; as many threads as slices share a pair.
    barrier();
    for (int p = thread(); p < 1 << log2_pairs; p += threads()) {
      Acc total[4];
      sum_of_slices(totals + p, slices, 1 << log2_pairs, total);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int c = 2 * p + j;
        if (c >= w.valid) continue;
        if (a.dD && a.first_state == 0) static_cast<Acc*>(a.dD)[piece + w.channel + c] = total[j];
        if (a.ddelta_bias) {
          Acc& target = static_cast<Acc*>(a.ddelta_bias)[piece + w.channel + c];
          target = a.first_state > 0 ? target + total[2 + j] : total[2 + j];
        }
      }
    }
  } while (w.route + a.images < a.routes);
}

// What steps are computed from, of one state of two channels that a thread has alone, in registers; and what follows from
// the results at once.
template <bool kPairs, typename E, typename Acc, int kSub>
struct Alone {
  const BackwardArguments& a;
  const Pair<Acc>* matrices;   // in shared memory, from the first step on
  int32_t pixels[kSub];
  int steps, channels;         // that are there
  bool add;
  char *dx, *ddelta;
  Acc deltas[kSub][2], xs[kSub][2], gradients[kSub][2], skip[2], dD[2], dbias[2];

  VMDDPM_DEVICE void step(int u, Acc (&values)[4]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      values[j] = deltas[u][j];
      values[2 + j] = deltas[u][j] * xs[u][j];
    }
  }
  VMDDPM_DEVICE void gradient(int u, Acc (&values)[2]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) values[j] = gradients[u][j];
  }
  VMDDPM_DEVICE void B(int u, Acc (&values)[1]) const { values[0] = matrices[u].value[0]; }
  VMDDPM_DEVICE void B_and_C(int u, Acc (&values)[2]) const { load_row(matrices[u].value, values); }
  VMDDPM_DEVICE void keep(int u, const Acc (&results)[4]) {
    Acc more[2], ddeltas[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ddeltas[j] = results[j] + results[2 + j] * xs[u][j];
      if (a.softplus) ddeltas[j] *= softplus_slope(deltas[u][j]);
      more[j] = results[2 + j] * deltas[u][j] + skip[j] * gradients[u][j];
    }
    if (u >= steps || channels <= 0) return;  // there the state goes on as it is, and its gradient with it
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      dD[j] += gradients[u][j] * xs[u][j];
      dbias[j] += ddeltas[j];
    }
    store_pair<kPairs, E>(a.dx, dx, pixels[u], channels, add, more);
    store_pair<kPairs, E>(a.ddelta, ddelta, pixels[u], channels, false, ddeltas);
  }
};

// The adjoint scan of one state. A thread reads its two channels for itself, a few steps ahead of their use, and keeps
// nothing in shared memory but delta and the states at every few steps; the block's B and C come through it.
template <bool kPairs, typename E, bool kZoh>
VMDDPM_KERNEL(kAloneThreads, kZoh || sizeof(E) == 8 ? 2 : kPairs ? 4 : 3) scan_backward_alone(VMDDPM_ARGUMENTS(BackwardArguments) a) {
  using Acc = std::conditional_t<sizeof(E) == 8, double, float>;
  constexpr int kSub = alone_steps(sizeof(E) == 8, kZoh), kSums = 2 * kSub;
  char* shared = gpu::shared();
  Work& w = *reinterpret_cast<Work*>(shared + a.at.work);
  int32_t* pixels = reinterpret_cast<int32_t*>(shared + a.at.pixels);
  Pair<Acc>* matrices = reinterpret_cast<Pair<Acc>*>(shared + a.at.matrices);
  Pair<Acc>* deltas = reinterpret_cast<Pair<Acc>*>(shared + a.at.drive) + thread();
  Pair<Acc>* history = reinterpret_cast<Pair<Acc>*>(shared + a.at.history) + thread();
  Acc* sums = reinterpret_cast<Acc*>(shared + a.at.sums);
  Acc* biases = reinterpret_cast<Acc*>(shared + a.at.bias);
  Acc* skips = reinterpret_cast<Acc*>(shared + a.at.skip);
  const int lane = thread() % kWarp, element = lane / (kWarp / kSums);
  Acc* own_sum = sums + (2 * (thread() / kWarp) + element / kSub) * kChunk + element % kSub;

  if (thread() == 0) begin_block(a, 0, w);
  barrier();
  const int channels = w.valid - 2 * thread(), column = channels > 0 ? 2 * thread() : 0;
  do {
    barrier();  // the route before this one is done with shared memory
    if (thread() == 0) next_route(a, w);
    barrier();
    load_parameters(a, w, biases, skips);
    barrier();
    const char* x_lane = lane_at<kPairs>(a.x, w.x, column);
    const char* delta_lane = lane_at<kPairs>(a.delta, w.delta, column);
    const char* dy_lane = lane_at<kPairs>(a.dy, w.dy, column);
    Alone<kPairs, E, Acc, kSub> at{a};
    at.channels = channels;
    at.add = w.adds;
    at.dx = lane_at<kPairs>(a.dx, w.dx, column);
    at.ddelta = lane_at<kPairs>(a.ddelta, w.ddelta, column);
    Acc rates[2], h[2], dh[2], bias[2];
    // Sums over the steps, each chunk's by itself first: a long sequence is not one long chain of roundings.
    Acc dA[2] = {}, dD[2] = {}, dbias[2] = {};
    load_row(biases + 2 * thread(), bias);
    load_row(skips + 2 * thread(), at.skip);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Acc one[1];
      load_rates(a, w, 2 * thread() + j, 0, one);
      rates[j] = one[0];
      load_start(a, w, 2 * thread() + j, 0, one);
      dh[j] = one[0];
    }
    const int chunks = (w.steps + kChunk - 1) / kChunk;
    fetch_pixels(w, chunks - 1, pixels);

#pragma unroll 1
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
      load_piece<2, 1>(a, w, 2 * thread(), 0, checkpoint<Acc>(a, w, chunk), h);
      wait_copies<0>();
      barrier();
      const ChunkSteps steps = steps_of(w, chunk, pixels);
      decode_matrices<E, Acc, 1>(a, w, steps, matrices);
      fetch_pixels(w, chunk - 1, pixels);
      barrier();
      const int last = (steps.count - 1) / kSub;

      RawPair<E> raw[kSub], more[kSub];
      const auto fetch = [&](const PairStream& one, const char* one_lane, const PairStream& other, const char* other_lane,
                             bool has_other, int group) {
        int32_t at_pixels[kSub];
        load_row(steps.pixels + group * kSub, at_pixels);
#pragma unroll
        for (int u = 0; u < kSub; ++u) {
          fetch_pair<kPairs>(one, one_lane, at_pixels[u], channels, raw[u]);
          if (has_other) fetch_pair<kPairs>(other, other_lane, at_pixels[u], channels, more[u]);
        }
      };
      fetch(a.x, x_lane, a.delta, delta_lane, true, 0);
#pragma unroll 1
      for (int group = 0; group <= last; ++group) {
        at.matrices = matrices + group * kSub;
#pragma unroll
        for (int u = 0; u < kSub; ++u) {
          values_of<kPairs>(raw[u], at.xs[u]);
          values_of<kPairs>(more[u], at.deltas[u]);
        }
        if (group < last) fetch(a.x, x_lane, a.delta, delta_lane, true, group + 1);
#pragma unroll
        for (int u = 0; u < kSub; ++u) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            Acc& delta = at.deltas[u][j];
            delta += bias[j];
            if (a.softplus) delta = softplus(delta);
            if (group * kSub + u >= steps.count || j >= channels) delta = Acc(0);
          }
          store_row(deltas[(group * kSub + u) * threads()].value, at.deltas[u]);
        }
        store_row(history[group * threads()].value, h);
        replay_steps<1, kSub, kZoh>(at, rates, h);
      }

      Acc chunk_dA[2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) at.dD[j] = at.dbias[j] = Acc(0);
#pragma unroll
      for (int u = 0; u < kSub; ++u) more[u] = RawPair<E>{};
      fetch(a.x, x_lane, a.dy, dy_lane, a.has_dy, last);
#pragma unroll 1
      for (int group = last; group >= 0; --group) {
        at.matrices = matrices + group * kSub;
        at.steps = steps.count - group * kSub;
        load_row(steps.pixels + group * kSub, at.pixels);
#pragma unroll
        for (int u = 0; u < kSub; ++u) {
          values_of<kPairs>(raw[u], at.xs[u]);
          values_of<kPairs>(more[u], at.gradients[u]);
          load_row(deltas[(group * kSub + u) * threads()].value, at.deltas[u]);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if (u >= at.steps || j >= channels) at.gradients[u][j] = Acc(0);
          }
        }
        load_row(history[group * threads()].value, h);
        if (group > 0) fetch(a.x, x_lane, a.dy, dy_lane, a.has_dy, group - 1);
        const Acc sum = adjoint_steps<1, kSub, kZoh, kWarp>(at, rates, h, dh, chunk_dA, lane);
        if (lane % (kWarp / kSums) == 0) own_sum[group * kSub] = sum;
      }
      barrier();
      combine_tiles<kChunk, 1>(a, w, steps, 0, threads() / kWarp, 0, sums);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        dA[j] += chunk_dA[j];
        dD[j] += at.dD[j];
        dbias[j] += at.dbias[j];
      }
    }

    const int64_t piece = ((w.batch * a.segments + w.segment) * a.routes + w.route) * a.channels + w.channel;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j >= channels) continue;
      const Acc one[1] = {dh[j]};
      static_cast<Acc*>(a.dA)[piece + column + j] = dA[j];
      if (a.dstart && w.segment == 0) store_states(a, w, column + j, 0, one, static_cast<Acc*>(a.dstart));
      if (a.dD) static_cast<Acc*>(a.dD)[piece + column + j] = dD[j];
      if (a.ddelta_bias) static_cast<Acc*>(a.ddelta_bias)[piece + column + j] = dbias[j];
    }
  } while (w.route + a.images < a.routes);
}

template <typename E>
void launch_backward(const BackwardArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  if (plan.states_per_thread * plan.slices == 1) {
    auto kernel = a.pairs ? &scan_backward_alone<true, E, false> : &scan_backward_alone<false, E, false>;
    if (zoh) kernel = a.pairs ? &scan_backward_alone<true, E, true> : &scan_backward_alone<false, E, true>;
    return launch("scan_backward_alone", kernel, block_count(a), kUnit * plan.tiles, a.at.bytes, stream, a);
  }
  constexpr int S = sizeof(E) == 8 ? 1 : 2;
  const auto kernel = zoh ? &scan_backward<E, S, true> : &scan_backward<E, S, false>;
  launch("scan_backward", kernel, block_count(a), kUnit * plan.slices * plan.tiles, a.at.bytes, stream, a);
}

int64_t matrix_elements(const ScanParams& p) { return p.batch * p.routes * p.length * p.states; }

BackwardArguments backward_arguments(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWork& work) {
  const ScanParams& p = g.forward;
  BackwardArguments a{};
  a.batch = p.batch;
  a.routes = p.routes;
  a.length = p.length;
  a.channels = p.channels;
  a.states = p.states;
  a.groups = plan.groups;
  a.segments = plan.segments;
  a.segment = plan.segment;
  a.chunks = plan.chunks;
  a.piece = p.states * p.channels;
  a.images = p.sum_routes && plan.images ? plan.images : p.routes;
  a.log2_slices = log2_of(plan.slices);
  a.log2_tiles = log2_of(plan.tiles);
  a.softplus = p.softplus;
  a.has_dy = g.dy.data != nullptr;
  const int64_t image[4] = {p.batch, p.sum_routes ? 1 : p.routes, p.length, p.channels};
  const int64_t wide[4] = {p.batch, p.routes, p.length, p.channels}, matrix[4] = {p.batch, p.routes, p.length, p.states};
  const DType accumulated = p.wide ? DType::f64 : DType::f32;
  a.x = make_pair_stream(p.x, wide, false);
  a.delta = make_pair_stream(p.delta, wide, false);
  a.B = make_pair_stream(p.B, matrix, p.B.dtype == accumulated);
  a.C = make_pair_stream(p.C, matrix, p.C.dtype == accumulated);
  if (a.has_dy) a.dy = make_pair_stream(g.dy, image, false);
  View dx = g.dx;
  if (plan.images) {
    dx.data = work.images;
    dx.dtype = accumulated;
    if (p.sum_routes) dx.stride[1] = p.batch * p.length * p.channels;
  }
  const int64_t images[4] = {p.batch, a.images, p.length, p.channels};
  a.dx = make_pair_stream(dx, images, dx.dtype == accumulated);
  a.ddelta = make_pair_stream(g.ddelta, wide, g.ddelta.dtype == accumulated);
  a.pairs = a.x.pairs && a.delta.pairs && (!a.has_dy || a.dy.pairs) && a.dx.pairs && a.ddelta.pairs;
  a.A = p.A;
  a.D = p.D;
  a.delta_bias = p.delta_bias;
  a.table = p.table;
  a.start = g.dlast_state;
  a.checkpoints = p.checkpoints;
  a.segment_state = work.segment_state;
  a.segment_delta = work.segment_delta;
  a.dB = work.matrices ? work.matrices : g.dB;
  a.dC = work.matrices ? static_cast<char*>(work.matrices) + plan.groups * matrix_elements(p) * size_of(accumulated) : g.dC;
  a.dA = g.dA;
  a.dD = g.dD;
  a.ddelta_bias = g.ddelta_bias;
  a.dstart = g.dinitial_state;
  return a;
}

void scan_part(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWork& work, void* stream) {
  const ScanParams& p = g.forward;
  BackwardArguments a = backward_arguments(g, plan, work);
  if (plan.segments > 1) {
    adjoint_carries(a, g, plan, stream);
    a.start = work.segment_state;
    a.start_by_segment = true;
  }
  a.at = chunk_layout(plan, p);
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    a.first_state = pass * plan.states_per_thread * plan.slices;
    a.add = pass > 0;
    switch (p.x.dtype) {
      case DType::f64: launch_backward<double>(a, plan, p.zoh, stream); break;
      case DType::f32: launch_backward<float>(a, plan, p.zoh, stream); break;
      case DType::f16: launch_backward<Half>(a, plan, p.zoh, stream); break;
      case DType::bf16: launch_backward<BFloat16>(a, plan, p.zoh, stream); break;
    }
  }
  if (plan.images) {
    fold(work.images, p.sum_routes ? plan.images : 1, p.batch * p.length * p.channels * (p.sum_routes ? 1 : p.routes), g.dx.data,
         g.dx.dtype, stream);
  }
  if (work.matrices) {
    fold(a.dB, plan.groups, matrix_elements(p), g.dB, work.dB, stream);
    fold(a.dC, plan.groups, matrix_elements(p), g.dC, work.dC, stream);
  }
}

}  // namespace
}  // namespace gpu

void cuda_scan_backward(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWork& work, int device, void* stream) {
  gpu::use_device(device);
  gpu::for_parts(g.forward.batch, plan, [&](int64_t first, int64_t count) {
    gpu::scan_part(gpu::part_of(g, plan, work, first, count), plan, work, stream);
  });
}

}  // namespace vmddpm
