// The adjoint scan. A segment's chunks are walked from the last to the first. Each is replayed from its checkpoint,
// keeping the states at every few steps in shared memory, and then walked backwards: the states and decays of those few
// steps are computed again into registers, where the adjoint recurrence reads them.
#include "cuda_adjoint.h"
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

// This thread's place in its block.
struct Seat {
  int lane, slice, tile;              // of its unit, and its unit
  int column;                         // its first channel within the block
  VMDDPM_DEVICE explicit Seat(const ScanArguments& a)
      : lane(thread() % kUnit),
        slice(thread() / kUnit & ((1 << a.log2_slices) - 1)),
        tile(thread() / kUnit >> a.log2_slices),
        column(tile * kWarp + 2 * lane) {}
};

// The steps of a segment's chunks, whose pixel numbers are fetched a chunk ahead.
struct ChunkSteps {
  const Work& w;
  int32_t* pixels;  // of two chunks, in shared memory

  VMDDPM_DEVICE TileSteps operator()(int chunk) const {
    const int first = chunk * kChunk, left = w.steps - first;
    return {w.table ? pixels + chunk % 2 * kChunk : nullptr, w.first_step + first, left < kChunk ? left : kChunk};
  }

  VMDDPM_DEVICE void fetch(int chunk) const {
    if (w.table && chunk >= 0) {
      for (int i = thread(); i < kChunk; i += threads()) {
        const int step = chunk * kChunk + i;
        if (step < w.steps) copy_async<4>(pixels + chunk % 2 * kChunk + i, w.table + step, 4);
      }
    }
    commit_copies();
  }
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

template <typename E, int S, bool kZoh>
VMDDPM_KERNEL(kBackwardThreads, kZoh || sizeof(E) == 8 ? 1 : 2) scan_backward(VMDDPM_ARGUMENTS(BackwardArguments) a) {
  using Acc = std::conditional_t<sizeof(E) == 8, double, float>;
  constexpr int kSub = sub_steps(S, sizeof(Acc) == 8, kZoh), kSums = 2 * kSub * S;
  const Seat me(a);
  const int slices = 1 << a.log2_slices, tiles = 1 << a.log2_tiles;
  const int log2_states = log2_of(S) + a.log2_slices, log2_pairs = 4 + a.log2_tiles, strip = a.at.strip;
  const int first = me.slice * S;  // of this thread's states among those of the launch
  char* shared = gpu::shared();
  Work& w = *reinterpret_cast<Work*>(shared + a.at.work);
  Drive<Acc>* drive = reinterpret_cast<Drive<Acc>*>(shared + a.at.drive);
  Pair<Acc>* dy = reinterpret_cast<Pair<Acc>*>(shared + a.at.dy);
  Pack<Acc, 2 * S>* matrices = reinterpret_cast<Pack<Acc, 2 * S>*>(shared + a.at.matrices);
  Drive<Acc>* partial = reinterpret_cast<Drive<Acc>*>(shared + a.at.partial);
  Acc* sums = reinterpret_cast<Acc*>(shared + a.at.sums);
  Pack<Acc, 2 * S>* history = reinterpret_cast<Pack<Acc, 2 * S>*>(shared + a.at.history) + thread();
  Acc* bias = reinterpret_cast<Acc*>(shared + a.at.bias);
  Acc* skip = reinterpret_cast<Acc*>(shared + a.at.skip);
  const int own = me.tile * kTilePairs + me.lane;
  const Rows<Acc, S> rows{drive + own, dy + own, matrices + me.slice * kMatrixPitch};
  Drive<Acc>* own_partial = partial + thread() / kUnit * strip * kUnit + me.lane;
  // The element of dB or dC that lane_sums leaves in this lane, and its place among those of the first steps of a strip.
  const int element = me.lane / (kUnit / kSums);
  Acc* own_sum = sums + (((2 * me.tile + element / (kSub * S)) * strip + element / S % kSub) << log2_states) + first +
                 element % S;

  if (thread() == 0) begin_block(a, log2_states, w);
  barrier();
  const int routes = a.loops_routes ? static_cast<int>(a.route_end - a.route_begin) : 1;
  const int64_t first_route = w.route;
  const int chunks = (w.steps + kChunk - 1) / kChunk;
  for (int r = 0; r < routes; ++r) {
    barrier();  // the route before this one is done with shared memory
    if (thread() == 0) begin_route(a, first_route + r, w);
    barrier();
    Acc rates[2 * S], h[2 * S], dh[2 * S];
    // Sums over the steps, each chunk's by itself first: a long sequence is not one long chain of roundings.
    Acc dA[2 * S] = {}, dD[2] = {}, dbias[2] = {};
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
    const ChunkSteps steps_of{w, reinterpret_cast<int32_t*>(shared + a.at.pixels)};
    steps_of.fetch(chunks - 1);

#pragma unroll 1
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        Acc one[S];
        load_piece(a, w, w.first_step / kGpuChunk + chunk, a.chunks, me.column + j, first,
                   static_cast<const Acc*>(a.checkpoints), one);
#pragma unroll
        for (int s = 0; s < S; ++s) h[j * S + s] = one[s];
      }
      wait_copies<0>();
      barrier();
      const TileSteps steps = steps_of(chunk);
      const int last_strip = (steps.count - 1) / strip, last = (last_strip + 1) * (strip / kSub) - 1;
      decode_channels<E>(a, w, steps, (last + 1) * kSub, drive, dy);
      decode_matrix<E, Acc, S>(a.B_in, w, a.first_state, steps, a.log2_slices, 0, matrices);
      decode_matrix<E, Acc, S>(a.C_in, w, a.first_state, steps, a.log2_slices, 1, matrices);
      steps_of.fetch(chunk - 1);
      barrier();

#pragma unroll 1
      for (int sub = 0; sub < last; ++sub) {
        store_row(history[sub * threads()].value, h);
        replay_steps<Acc, S, kSub, kZoh>(rows, sub * kSub, rates, h);
      }
      Acc chunk_dA[2 * S] = {}, chunk_dD[2] = {}, chunk_dbias[2] = {};
#pragma unroll 1
      for (int sub = last; sub >= 0; --sub) {
        const int in_strip = sub * kSub & (strip - 1);
        if (sub < last) load_row(history[sub * threads()].value, h);
        const Acc sum = adjoint_steps<Acc, S, kSub, kZoh>(rows, sub * kSub, rates, h, dh, chunk_dA,
                                                          own_partial + in_strip * kUnit, me.lane);
        if (me.lane % (kUnit / kSums) == 0) own_sum[in_strip << log2_states] = sum;
        if (in_strip) continue;
        barrier();

        // The slices' shares add up. drive = delta x, and y has D x in it.
        const int begin = sub * kSub;
        const char* x_block = lane_of(a.x_in.at, w.batch, w.route, w.channel);
        char* dx_block = lane_of(a.dx_out.at, w.batch, w.route, w.channel);
        char* ddelta_block = lane_of(a.ddelta_out.at, w.batch, w.route, w.channel);
#pragma unroll 1
        for (int i = opaque(thread()); i < strip << log2_pairs; i += threads()) {
          const PairCell cell(i + (begin << log2_pairs), false, log2_pairs);
          const int c = cell.column(), tile = cell.pair / kUnit, u = cell.t - begin;
          const int count = cell.t < steps.count ? w.valid - c : 0;
          if (count <= 0) continue;  // beyond the last step the state goes on as it is, and its gradient with it
          const int64_t pixel = steps.pixel(cell.t);
          const RawPair<E> raw = fetch_pair<E>(a.x_in, x_block, pixel, c, count);
          Acc total[4], delta[2], x[2], gradient[2], by_skip[2], dx[2], ddelta[2];
          sum_of_slices(partial + ((tile << a.log2_slices) * strip + u) * kUnit + cell.pair % kUnit, slices, strip * kUnit, total);
          load_row(drive[cell.place()].value, delta);
          load_row(dy[cell.place()].value, gradient);
          load_row(skip + c, by_skip);
          values_of(a.x_in, raw, x);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            ddelta[j] = total[j] + total[2 + j] * x[j];
            if (a.softplus) ddelta[j] *= softplus_slope(delta[j]);
            dx[j] = total[2 + j] * delta[j] + by_skip[j] * gradient[j];
            chunk_dD[j] += gradient[j] * x[j];
            chunk_dbias[j] += ddelta[j];
          }
          if (a.dx_out.by_steps) {
            store_row(dy[cell.place()].value, dx);
          } else {
            store_pair<E>(a.dx_out, dx_block, pixel, c, count, a.add || r > 0, dx);
          }
          if (a.ddelta_out.by_steps) {
            store_row(drive[cell.place()].value, ddelta);
          } else {
            store_pair<E>(a.ddelta_out, ddelta_block, pixel, c, count, a.first_state > 0, ddelta);
          }
        }
        // So do the tiles'.
#pragma unroll 1
        for (int i = opaque(thread()); i < 2 * strip << log2_states; i += threads()) {
          const int n = i & ((1 << log2_states) - 1), row = i >> log2_states, u = row & (strip - 1), which = row / strip;
          if (begin + u >= steps.count || n >= w.states) continue;
          Acc sum = Acc(0);
          for (int j = 0; j < tiles; ++j) sum += sums[j * (2 * strip << log2_states) + i];
          const int64_t pixel = ((w.group * a.batch + w.batch) * a.routes + w.route) * a.length + steps.pixel(begin + u);
          static_cast<Acc*>(which ? a.dC : a.dB)[pixel * a.states + a.first_state + n] = sum;
        }
        barrier();
      }
      if (a.dx_out.by_steps) {
        store_columns<E, Acc>(a.dx_out, lane_of(a.dx_out.at, w.batch, w.route, w.channel), steps, w.valid, a.add || r > 0, [=](int t, int c) {
          return dy[PairCell((t << log2_pairs) + c / 2, false, log2_pairs).place()].value[c % 2];
        });
      }
      if (a.ddelta_out.by_steps) {
        store_columns<E, Acc>(a.ddelta_out, lane_of(a.ddelta_out.at, w.batch, w.route, w.channel), steps, w.valid, a.first_state > 0, [=](int t, int c) {
          return drive[PairCell((t << log2_pairs) + c / 2, false, log2_pairs).place()].value[c % 2];
        });
      }
#pragma unroll
      for (int i = 0; i < 2 * S; ++i) dA[i] += chunk_dA[i];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        dD[j] += chunk_dD[j];
        dbias[j] += chunk_dbias[j];
      }
    }

    const int64_t piece = ((w.batch * a.segments + w.segment) * a.routes + w.route) * a.channels;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (me.column + j >= w.valid) continue;
      Acc* to = static_cast<Acc*>(a.dA) + (piece + w.channel + me.column + j) * a.states + a.first_state + first;
      Acc one[S];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        one[s] = dh[j * S + s];
        if (first + s < w.states) to[s] = dA[j * S + s];
      }
      if (a.dstart && w.segment == 0) store_states(a, w, me.column + j, first, one, static_cast<Acc*>(a.dstart));
    }
    // Each thread has summed the steps of one pair that fell to it; as many threads as slices share a pair.
    const Acc shares[4] = {dD[0], dD[1], dbias[0], dbias[1]};
    store_row(partial[thread()].value, shares);
    barrier();
    for (int p = thread(); p < 1 << log2_pairs; p += threads()) {
      Acc total[4];
      sum_of_slices(partial + p, slices, 1 << log2_pairs, total);
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
  }
}

template <typename E, int S>
void launch_backward(const BackwardArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  const auto kernel = zoh ? &scan_backward<E, S, true> : &scan_backward<E, S, false>;
  launch("scan_backward", kernel, block_count(a), kUnit * plan.slices * plan.tiles, a.at.bytes, stream, a);
}

template <typename E>
void launch_backward_of(const BackwardArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  if (plan.states_per_thread == 1) return launch_backward<E, 1>(a, plan, zoh, stream);
  launch_backward<E, 2>(a, plan, zoh, stream);
}

}  // namespace
}  // namespace gpu

void cuda_scan_backward(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWork& work, int device, void* stream) {
  using namespace gpu;
  use_device(device);
  const ScanParams& p = g.forward;
  BackwardArguments a{};
  static_cast<ScanArguments&>(a) = scan_arguments(p, plan, work);
  const int64_t image[4] = {p.batch, p.sum_routes ? 1 : p.routes, p.length, p.channels};
  const int64_t wide[4] = {p.batch, p.routes, p.length, p.channels}, matrix[4] = {p.batch, p.routes, p.length, p.states};
  const DType accumulated = p.wide ? DType::f64 : DType::f32;
  a.has_dy = g.dy.data != nullptr;
  a.x_in = make_pair_stream(p.x, wide, false);
  a.delta_in = make_pair_stream(p.delta, wide, false);
  a.B_in = make_pair_stream(p.B, matrix, p.B.dtype == accumulated);
  a.C_in = make_pair_stream(p.C, matrix, p.C.dtype == accumulated);
  if (a.has_dy) a.dy_in = make_pair_stream(g.dy, image, false);
  a.dx_out = make_pair_stream(g.dx, image, g.dx.dtype == accumulated);
  a.ddelta_out = make_pair_stream(g.ddelta, wide, g.ddelta.dtype == accumulated);
  a.dB = g.dB;
  a.dC = g.dC;
  a.dA = g.dA;
  a.dD = g.dD;
  a.ddelta_bias = g.ddelta_bias;
  a.dstart = g.dinitial_state;
  a.start = g.dlast_state;
  if (plan.segments > 1) {
    adjoint_carries(g, plan, work, stream);
    a.start = work.segment_state;
    a.start_by_segment = true;
  }
  a.at = chunk_layout(plan, p);
  for_each_launch(a, p, plan, true, [&](const ScanArguments& part) {
    static_cast<ScanArguments&>(a) = part;
    switch (p.x.dtype) {
      case DType::f64: return launch_backward<double, 1>(a, plan, p.zoh, stream);
      case DType::f32: return launch_backward_of<float>(a, plan, p.zoh, stream);
      case DType::f16: return launch_backward_of<Half>(a, plan, p.zoh, stream);
      case DType::bf16: return launch_backward_of<BFloat16>(a, plan, p.zoh, stream);
    }
  });
}

}  // namespace vmddpm
