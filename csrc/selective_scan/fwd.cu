// The forward scan, and the two walks that make long sequences parallel: the state a segment adds to what enters it
// (kCarry), and its adjoint, walked from the end (kAdjoint).
#include <algorithm>

#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

enum class Walk { kScan, kCarry, kAdjoint };

template <Walk walk>
struct ForwardVisits {
  int tiles;
  bool has_dy;
  VMDDPM_DEVICE Visit operator()(int v) const {
    if (walk == Walk::kAdjoint) return {tiles - 1 - v, false, false, true, has_dy};
    return {v, true, true, walk == Walk::kScan, false};
  }
};

// One step of S states of one channel (Eq. 5-6): h = e^v h + phi(v) drive B with v = delta A. Returns <C, h>.
template <typename Acc, int S, bool kZoh, bool kOutput>
VMDDPM_DEVICE Acc step(Acc delta, Acc drive, const Acc* B, const Acc* C, const Acc (&rates)[S], Acc (&h)[S]) {
  Acc b[S], c[S];
  load_row(B, b);
  if constexpr (kOutput) load_row(C, c);
  constexpr int kSums = S < 4 ? S : 4;  // short chains of additions
  Acc y[kSums] = {};
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const Acc v = delta * rates[s], e = decay(v);
    Acc input = drive * b[s];
    if constexpr (kZoh) {
      Acc phi, dphi;
      zoh_weight(v * kRateUnit<Acc>, e, phi, dphi);
      input *= phi;
    }
    h[s] = e * h[s] + input;
    if constexpr (kOutput) y[s % kSums] += h[s] * c[s];
  }
  Acc sum = y[0];
#pragma unroll
  for (int i = 1; i < kSums; ++i) sum += y[i];
  return sum;
}

template <typename Acc, int S, bool kZoh, Walk walk>
VMDDPM_KERNEL(walk == Walk::kAdjoint ? kBackwardThreads : kForwardThreads, walk == Walk::kAdjoint ? 2 : 4) scan_forward(VMDDPM_ARGUMENTS(ScanArguments) a) {
  constexpr bool kScan = walk == Walk::kScan, kAdjoint = walk == Walk::kAdjoint;
  const Place me(a);
  const int log2_states = log2_of(S) + a.log2_slices, log2_width = 5 + a.log2_tiles;
  const int first = me.slice * S;  // of this thread's states among those of the launch
  char* shared = gpu::shared();
  Work& w = *reinterpret_cast<Work*>(shared + a.shared.work);
  Acc* x_tile = reinterpret_cast<Acc*>(shared + a.shared.x);
  Acc* delta_tile = reinterpret_cast<Acc*>(shared + a.shared.delta);
  Acc* B_tile = reinterpret_cast<Acc*>(shared + a.shared.B);
  Acc* C_tile = reinterpret_cast<Acc*>(shared + a.shared.C);
  Acc* partial = reinterpret_cast<Acc*>(shared + a.shared.partial);  // a tile for each slice
  Acc* bias = reinterpret_cast<Acc*>(shared + a.shared.bias);
  Acc* skip = reinterpret_cast<Acc*>(shared + a.shared.skip);
  const bool softplus_on = a.softplus;
  const auto as_it_is = [](Acc value, int) { return value; };
  const auto activated = [=](Acc value, int c) {
    const Acc raw = value + bias[c];
    return softplus_on ? softplus(raw) : raw;
  };

  if (thread() == 0) begin_block(a, log2_states, w);
  barrier();
  const int routes = a.loops_routes ? static_cast<int>(a.route_end - a.route_begin) : 1;
  const int64_t first_route = w.route;
  const int tiles = (w.steps + kSteps - 1) / kSteps;
  for (int r = 0; r < routes; ++r) {
    barrier();  // the route before this one is done with shared memory
    if (thread() == 0) begin_route(a, first_route + r, w);
    barrier();
    Acc rates[S], h[S], delta_sum = Acc(0);
    load_rates(a, w, me.column, first, rates);
    load_parameters(a, w, bias, skip);
    if constexpr (kScan) {
      load_start(a, w, me.column, first, h);
    } else {
#pragma unroll
      for (int s = 0; s < S; ++s) h[s] = Acc(0);
    }
    const Pipeline<ForwardVisits<walk>> pipeline{a, w, {tiles, a.has_dy}, tiles, log2_states};
    pipeline.start();

#pragma unroll 1
    for (int v = 0; v < tiles; ++v) {
      pipeline.await();
      {
        const int count = pipeline.steps_of(v).count;
        const char* stage = pipeline.stage_of(v);
        decode_channels(a.delta, stage + a.shared.raw_delta, count, w.valid, log2_width, delta_tile, activated);
        if constexpr (kAdjoint) {
          decode_channels(a.dy, stage + a.shared.raw_dy, a.has_dy ? count : 0, w.valid, log2_width, x_tile, as_it_is);
        } else {
          decode_channels(a.x, stage + a.shared.raw_x, count, w.valid, log2_width, x_tile, as_it_is);
          decode_states(a.B, stage + a.shared.raw_B, count, w.states, log2_states, kRow<S>, B_tile);
        }
        if constexpr (walk != Walk::kCarry) {
          decode_states(a.C, stage + a.shared.raw_C, count, w.states, log2_states, kRow<S>, C_tile);
        }
      }
      barrier();
      pipeline.fetch(v + kStages - 1);

      if constexpr (kScan) {
        const int64_t at = w.first_step + v * kSteps;
        if (a.checkpoints && at % kGpuChunk == 0) {
          store_piece(a, w, at / kGpuChunk, a.chunks, me.column, first, h, static_cast<Acc*>(a.checkpoints));
        }
      }
      constexpr int kUnroll = S >= 16 ? 2 : S >= 4 ? 4 : 8;
      const int own = place_in_tile(0, me.column);
      Acc* y = partial + (me.slice << a.log2_tiles) * kTileSize + own;
#pragma unroll kUnroll
      for (int i = 0; i < kSteps; ++i) {
        const int t = kAdjoint ? kSteps - 1 - i : i;
        const Acc delta = delta_tile[own + t * kPitch], value = x_tile[own + t * kPitch];
        const Acc *B = B_tile + t * kRow<S> + first, *C = C_tile + t * kRow<S> + first;
        if constexpr (kScan) {
          y[t * kPitch] = step<Acc, S, kZoh, true>(delta, delta * value, B, C, rates, h);
        } else if constexpr (kAdjoint) {
          // dh_{l-1} = e^v (dh_l + C dy), the adjoint of the step before.
          Acc c[S];
          load_row(C, c);
#pragma unroll
          for (int s = 0; s < S; ++s) h[s] = decay(delta * rates[s]) * (h[s] + value * c[s]);
        } else {
          step<Acc, S, kZoh, false>(delta, delta * value, B, C, rates, h);
        }
        if constexpr (!kScan) delta_sum += delta;
      }

      if constexpr (kScan) {
        barrier();
        const int slices = 1 << a.log2_slices, share = kTileSize << a.log2_tiles;
        store_tile<Acc>(a.y, w.y, pipeline.steps_of(v), w.valid, log2_width, a.add || r > 0, [=](int at, int c) {
          Acc sum = skip[c] * x_tile[at];
          for (int g = 0; g < slices; ++g) sum += partial[g * share + at];
          return sum;
        });
      }
    }

    if constexpr (kScan) {
      if (w.segment + 1 == a.segments) store_states(a, w, me.column, first, h, static_cast<Acc*>(a.last_state));
    } else {
      store_piece(a, w, w.segment, a.segments, me.column, first, h, static_cast<Acc*>(a.segment_state));
      if (a.first_state == 0 && me.slice == 0 && me.column < w.valid) {
        const int64_t row = (w.batch * a.routes + w.route) * a.segments + w.segment;
        static_cast<Acc*>(a.segment_delta)[row * a.channels + w.channel + me.column] = delta_sum;
      }
    }
  }
}

struct CombineArguments {
  int64_t sequences, routes, segments, channels, states;
  const void* A;
  const void* first;     // (B, K, D, N) or null: what enters the first segment, or the last one when `reverse`
  void* segment_state;   // what each segment adds -> what enters it
  const void* segment_delta;
  bool reverse;
};

// Segment after segment: the state that enters one is e^(A sum delta) times what entered the one before, plus what that
// one added. One thread a state.
template <typename Acc>
VMDDPM_KERNEL(kCombineThreads, 4) combine_segments(VMDDPM_ARGUMENTS(CombineArguments) a) {
  const int64_t index = block() * threads() + thread();
  if (index >= a.sequences * a.channels * a.states) return;
  const int64_t channel = index % a.channels, state = index / a.channels % a.states;
  const int64_t sequence = index / (a.channels * a.states);
  const Acc slope = rate(static_cast<const Acc*>(a.A)[((sequence % a.routes) * a.channels + channel) * a.states + state]);
  const Acc* first = static_cast<const Acc*>(a.first);
  Acc h = first ? first[(sequence * a.channels + channel) * a.states + state] : Acc(0);
  Acc* added = static_cast<Acc*>(a.segment_state) + (sequence * a.segments * a.states + state) * a.channels + channel;
  const Acc* delta = static_cast<const Acc*>(a.segment_delta) + sequence * a.segments * a.channels + channel;
  constexpr int kAtOnce = 8;  // loads in flight: the recurrence itself is short
  for (int64_t done = 0; done < a.segments; done += kAtOnce) {
    Acc more[kAtOnce], deltas[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t j = a.reverse ? a.segments - 1 - done - i : done + i;
      const bool inside = j >= 0 && j < a.segments;
      more[i] = inside ? added[j * a.states * a.channels] : Acc(0);
      deltas[i] = inside ? delta[j * a.channels] : Acc(0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t j = a.reverse ? a.segments - 1 - done - i : done + i;
      if (j < 0 || j >= a.segments) continue;
      added[j * a.states * a.channels] = h;
      h = decay(deltas[i] * slope) * h + more[i];
    }
  }
}

template <typename Acc, int S, Walk walk>
void launch_walk(const ScanArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  constexpr const char* name = walk == Walk::kScan ? "scan_forward" : walk == Walk::kCarry ? "scan_carry" : "scan_adjoint_carry";
  auto kernel = &scan_forward<Acc, S, false, walk>;
  if constexpr (walk != Walk::kAdjoint) {
    if (zoh) kernel = &scan_forward<Acc, S, true, walk>;
  }
  launch(name, kernel, block_count(a), block_threads(plan), a.shared.bytes, stream, a);
}

template <Walk walk>
void launch_passes(ScanArguments a, const ScanParams& p, const GpuScanPlan& plan, void* stream) {
  for_each_launch(a, p, plan, walk == Walk::kScan, [&](const ScanArguments& part) {
    if (p.wide) return launch_walk<double, 1, walk>(part, plan, p.zoh, stream);
    if (plan.states_per_thread == 1) return launch_walk<float, 1, walk>(part, plan, p.zoh, stream);
    if (plan.states_per_thread == 4) return launch_walk<float, 4, walk>(part, plan, p.zoh, stream);
    if constexpr (walk == Walk::kScan) return launch_walk<float, 16, walk>(part, plan, p.zoh, stream);
  });
}

void combine(const ScanArguments& a, const ScanParams& p, const void* first, bool reverse, void* stream) {
  const CombineArguments c{p.batch * p.routes, p.routes, a.segments, p.channels, p.states, p.A, first, a.segment_state,
                           a.segment_delta, reverse};
  const int64_t blocks = (c.sequences * c.channels * c.states + kCombineThreads - 1) / kCombineThreads;
  if (p.wide) {
    launch("combine_segments", &combine_segments<double>, blocks, kCombineThreads, 0, stream, c);
  } else {
    launch("combine_segments", &combine_segments<float>, blocks, kCombineThreads, 0, stream, c);
  }
}

}  // namespace

void adjoint_carries(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWork& work, void* stream) {
  const ScanParams& p = g.forward;
  GpuScanPlan walk = plan;
  walk.states_per_thread = p.wide || p.states <= 2 ? 1 : 4;
  walk.slices = kMostSlices;
  while (walk.slices > 1 && walk.states_per_thread * walk.slices / 2 >= p.states) walk.slices /= 2;
  walk.tiles = std::min(2, plan.tiles);
  walk.groups = (p.channels + kWarp * walk.tiles - 1) / (kWarp * walk.tiles);
  walk.passes = (p.states + walk.states_per_thread * walk.slices - 1) / (walk.states_per_thread * walk.slices);
  ScanArguments a = scan_arguments(p, walk, work);
  const int64_t sizes[4] = {p.batch, p.sum_routes ? 1 : p.routes, p.length, p.channels};
  a.has_dy = g.dy.data != nullptr;
  if (a.has_dy) a.dy = make_input(g.dy, sizes, kWarp * walk.tiles, p.table != nullptr);
  a.shared = shared_layout(a, walk, p, true);
  launch_passes<Walk::kAdjoint>(a, p, walk, stream);
  combine(a, p, g.dlast_state, true, stream);
}

}  // namespace gpu

void cuda_scan_forward(const ScanParams& p, const GpuScanPlan& plan, const GpuScanWork& work, int device, void* stream) {
  using namespace gpu;
  use_device(device);
  ScanArguments a = scan_arguments(p, plan, work);
  a.shared = shared_layout(a, plan, p, false);
  if (plan.segments > 1) {
    launch_passes<Walk::kCarry>(a, p, plan, stream);
    combine(a, p, p.initial_state, false, stream);
    a.start = work.segment_state;
    a.start_by_segment = true;
  }
  launch_passes<Walk::kScan>(a, p, plan, stream);
}

}  // namespace vmddpm
