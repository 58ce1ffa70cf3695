// The adjoint scan. A segment's chunks are walked from the last to the first. Each is replayed from its checkpoint,
// keeping the states at every few steps in shared memory, and then walked backwards: the states and decays of those few
// steps are computed again into registers, where the adjoint recurrence reads them.
#include "cuda_adjoint.h"
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

template <typename Acc, int S, bool kZoh>
VMDDPM_KERNEL(kBackwardThreads, kZoh || sizeof(Acc) == 8 ? 1 : 2) scan_backward(VMDDPM_ARGUMENTS(ScanArguments) a) {
  constexpr int kSub = sub_steps(S, sizeof(Acc) == 8, kZoh), kSubs = kSteps / kSub;
  constexpr int kMatrices = 2 * kSub * S;
  const Place me(a);
  const int log2_states = log2_of(S) + a.log2_slices, log2_width = 5 + a.log2_tiles, slices = 1 << a.log2_slices;
  const int share = kTileSize << a.log2_tiles;  // of a slice, in what the slices add up to
  constexpr int kMatrixSize = kSteps * kRow<S>;
  const int first = me.slice * S;  // of this thread's states among those of the launch
  char* shared = gpu::shared();
  Work& w = *reinterpret_cast<Work*>(shared + a.shared.work);
  Acc* x_tile = reinterpret_cast<Acc*>(shared + a.shared.x);
  Acc* delta_tile = reinterpret_cast<Acc*>(shared + a.shared.delta);
  Acc* dy_tile = reinterpret_cast<Acc*>(shared + a.shared.dy);
  Acc* B_tile = reinterpret_cast<Acc*>(shared + a.shared.B);
  Acc* C_tile = reinterpret_cast<Acc*>(shared + a.shared.C);
  Acc* ddelta_partial = reinterpret_cast<Acc*>(shared + a.shared.partial);  // a tile for each slice
  Acc* ddrive_partial = ddelta_partial + slices * share;                    // likewise
  Acc* matrices = reinterpret_cast<Acc*>(shared + a.shared.matrices);       // dB and dC of a tile for each 32 channels
  Pack<Acc, S>* history = reinterpret_cast<Pack<Acc, S>*>(shared + a.shared.history) + thread();
  Acc* bias = reinterpret_cast<Acc*>(shared + a.shared.bias);
  Acc* skip = reinterpret_cast<Acc*>(shared + a.shared.skip);
  const bool softplus_on = a.softplus;
  const auto as_it_is = [](Acc value, int) { return value; };
  const auto activated = [=](Acc value, int c) {
    const Acc raw = value + bias[c];
    return softplus_on ? softplus(raw) : raw;
  };
  const int own = place_in_tile(0, me.column);
  const Rows<Acc> rows{delta_tile + own, x_tile + own, dy_tile + own, B_tile + first, C_tile + first,
                       ddelta_partial + me.slice * share + own, ddrive_partial + me.slice * share + own};
  // The element of dB or dC that lane_sums leaves in this lane, and its place among those of the first steps of a tile.
  const int element = me.lane / (kWarp / kMatrices);
  Acc* own_matrix = matrices + (2 * me.tile + element / (kSub * S)) * kMatrixSize + element / S % kSub * kRow<S> + first +
                    element % S;

  if (thread() == 0) begin_block(a, log2_states, w);
  barrier();
  const int routes = a.loops_routes ? static_cast<int>(a.route_end - a.route_begin) : 1;
  const int64_t first_route = w.route;
  const int tiles = (w.steps + kSteps - 1) / kSteps;
  for (int r = 0; r < routes; ++r) {
    barrier();  // the route before this one is done with shared memory
    if (thread() == 0) begin_route(a, first_route + r, w);
    barrier();
    Acc rates[S], h[S], dh[S];
    // Sums over the steps, each chunk's by itself first: a long sequence is not one long chain of roundings.
    Acc dA[S] = {}, dD = Acc(0), dbias = Acc(0), chunk_dA[S] = {}, chunk_dD = Acc(0), chunk_dbias = Acc(0);
    load_rates(a, w, me.column, first, rates);
    load_parameters(a, w, bias, skip);
    load_start(a, w, me.column, first, dh);
#pragma unroll
    for (int s = 0; s < S; ++s) h[s] = Acc(0);
    const BackwardVisits visits{tiles, a.has_dy};
    const Pipeline<BackwardVisits> pipeline{a, w, visits, 2 * tiles, log2_states};
    pipeline.start();

#pragma unroll 1
    for (int v = 0; v < 2 * tiles; ++v) {
      pipeline.await();
      bool backwards;
      const int tile = visits.tile(v, backwards), in_chunk = tile % kChunkTiles;
      {
        const int count = pipeline.steps_of(v).count;
        const char* stage = pipeline.stage_of(v);
        decode_channels(a.delta, stage + a.shared.raw_delta, count, w.valid, log2_width, delta_tile, activated);
        decode_channels(a.x, stage + a.shared.raw_x, count, w.valid, log2_width, x_tile, as_it_is);
        decode_states(a.B, stage + a.shared.raw_B, count, w.states, log2_states, kRow<S>, B_tile);
        if (backwards) {
          decode_states(a.C, stage + a.shared.raw_C, count, w.states, log2_states, kRow<S>, C_tile);
          decode_channels(a.dy, stage + a.shared.raw_dy, a.has_dy ? count : 0, w.valid, log2_width, dy_tile, as_it_is);
        }
      }
      barrier();
      pipeline.fetch(v + kStages - 1);

      if (!backwards) {
        if (in_chunk == 0) {
          const int64_t chunk = (w.first_step + tile * kSteps) / kGpuChunk;
          load_piece(a, w, chunk, a.chunks, me.column, first, static_cast<const Acc*>(a.checkpoints), h);
        }
#pragma unroll 1
        for (int sub = 0; sub < kSubs; ++sub) {
          store_row(history[(in_chunk * kSubs + sub) * threads()].value, h);
#pragma unroll
          for (int u = 0; u < kSub; ++u) {
            const int t = sub * kSub + u;
            Acc b[S];
            load_row(rows.B + t * kRow<S>, b);
            const Acc delta = rows.delta[t * kPitch], drive = delta * rows.x[t * kPitch];
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
            }
          }
        }
        continue;
      }

#pragma unroll 1
      for (int sub = kSubs - 1; sub >= 0; --sub) {
        Acc before[S];
        load_row(history[(in_chunk * kSubs + sub) * threads()].value, before);
        const Acc sum = adjoint_steps<Acc, S, kSub, kZoh>(rows, sub * kSub, rates, before, dh, chunk_dA, me.lane);
        if (me.lane % (kWarp / kMatrices) == 0) own_matrix[sub * kSub * kRow<S>] = sum;
      }
      barrier();

      const TileSteps steps = pipeline.steps_of(v);
      // drive = delta x and y has D x in it. The tiles of x and delta become those of dx and of the raw delta's gradient.
#pragma unroll 1
      for (int i = opaque(thread()); i < kSteps << log2_width; i += threads()) {
        const int t = i >> log2_width, c = i - (t << log2_width), at = place_in_tile(t, c);
        Acc ddelta = Acc(0), ddrive = Acc(0);
        for (int g = 0; g < slices; ++g) {
          ddelta += ddelta_partial[g * share + at];
          ddrive += ddrive_partial[g * share + at];
        }
        const Acc x = x_tile[at], delta = delta_tile[at], dy = dy_tile[at];
        ddelta += ddrive * x;
        if (softplus_on) ddelta *= softplus_slope(delta);
        x_tile[at] = ddrive * delta + skip[c] * dy;
        delta_tile[at] = ddelta;
        if (t >= steps.count) continue;  // there the state goes on as it is, and its gradient with it
        chunk_dD += dy * x;
        chunk_dbias += ddelta;
      }
#pragma unroll 1
      for (int i = opaque(thread()); i < 2 * kSteps << log2_states; i += threads()) {
        const int n = i & ((1 << log2_states) - 1), row = i >> log2_states, t = row % kSteps, which = row / kSteps;
        if (t >= steps.count || n >= w.states) continue;
        Acc sum = Acc(0);
        for (int j = 0; j < 1 << a.log2_tiles; ++j) sum += matrices[(2 * j + which) * kMatrixSize + t * kRow<S> + n];
        const int64_t pixel = ((w.group * a.batch + w.batch) * a.routes + w.route) * a.length + steps.pixel(t);
        static_cast<Acc*>(which ? a.dC : a.dB)[pixel * a.states + a.first_state + n] = sum;
      }
      barrier();
      store_tile<Acc>(a.dx, w.dx, steps, w.valid, log2_width, a.add || r > 0,
                      [=](int at, int) { return x_tile[at]; });
      store_tile<Acc>(a.ddelta, w.ddelta, steps, w.valid, log2_width, a.first_state > 0,
                      [=](int at, int) { return delta_tile[at]; });
      if (in_chunk == 0) {
#pragma unroll
        for (int s = 0; s < S; ++s) {
          dA[s] += chunk_dA[s];
          chunk_dA[s] = Acc(0);
        }
        dD += chunk_dD;
        dbias += chunk_dbias;
        chunk_dD = chunk_dbias = Acc(0);
      }
    }

    const int64_t piece = ((w.batch * a.segments + w.segment) * a.routes + w.route) * a.channels;
    if (me.column < w.valid) {
      Acc* to = static_cast<Acc*>(a.dA) + (piece + w.channel + me.column) * a.states + a.first_state + first;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (first + s < w.states) to[s] = dA[s];
      }
    }
    if (a.dstart && w.segment == 0) store_states(a, w, me.column, first, dh, static_cast<Acc*>(a.dstart));
    // Each thread has summed the steps of one channel that fell to it; as many threads as slices share a channel.
    ddelta_partial[thread()] = dD;
    ddrive_partial[thread()] = dbias;
    barrier();
    for (int c = thread(); c < w.valid; c += threads()) {
      Acc sum_D = Acc(0), sum_bias = Acc(0);
      for (int g = 0; g < slices; ++g) {
        sum_D += ddelta_partial[(g << log2_width) + c];
        sum_bias += ddrive_partial[(g << log2_width) + c];
      }
      if (a.dD && a.first_state == 0) static_cast<Acc*>(a.dD)[piece + w.channel + c] = sum_D;
      if (a.ddelta_bias) {
        Acc& target = static_cast<Acc*>(a.ddelta_bias)[piece + w.channel + c];
        target = a.first_state > 0 ? target + sum_bias : sum_bias;
      }
    }
  }
}

template <typename Acc, int S>
void launch_backward(const ScanArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  const auto kernel = zoh ? &scan_backward<Acc, S, true> : &scan_backward<Acc, S, false>;
  launch("scan_backward", kernel, block_count(a), block_threads(plan), a.shared.bytes, stream, a);
}

}  // namespace
}  // namespace gpu

void cuda_scan_backward(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWork& work, int device, void* stream) {
  using namespace gpu;
  use_device(device);
  const ScanParams& p = g.forward;
  ScanArguments a = scan_arguments(p, plan, work);
  const int width = kWarp * plan.tiles;
  const int64_t sizes[4] = {p.batch, p.sum_routes ? 1 : p.routes, p.length, p.channels};
  const int64_t route_sizes[4] = {p.batch, p.routes, p.length, p.channels};
  a.has_dy = g.dy.data != nullptr;
  if (a.has_dy) a.dy = make_input(g.dy, sizes, width, p.table != nullptr);
  a.dx = make_output(g.dx, sizes);
  a.ddelta = make_output(g.ddelta, route_sizes);
  a.dB = g.dB;
  a.dC = g.dC;
  a.dA = g.dA;
  a.dD = g.dD;
  a.ddelta_bias = g.ddelta_bias;
  a.dstart = g.dinitial_state;
  a.start = g.dlast_state;
  a.shared = shared_layout(a, plan, p, true);
  if (plan.segments > 1) {
    adjoint_carries(a, p, plan, g.dlast_state, stream);
    a.start = work.segment_state;
    a.start_by_segment = true;
  }
  for_each_launch(a, p, plan, true, [&](const ScanArguments& part) {
    if (p.wide) return launch_backward<double, 1>(part, plan, p.zoh, stream);
    if (plan.states_per_thread == 1) return launch_backward<float, 1>(part, plan, p.zoh, stream);
    launch_backward<float, 4>(part, plan, p.zoh, stream);
  });
}

}  // namespace vmddpm
