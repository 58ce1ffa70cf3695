// The adjoint scan. A segment's chunks are walked from the last to the first. Each is replayed from its checkpoint,
// with the states of every few steps kept in shared memory, and then walked backwards: the states and decays of those
// few steps are recomputed into registers, where the adjoint recurrence reads them.
#include <algorithm>

#include "batch_part.h"
#include "cuda_adjoint.h"
#include "cuda_combine.h"
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

template <typename E, int S, bool kZoh>
VMDDPM_KERNEL((kZoh || sizeof(E) == 8 ? kBackwardThreads / 2 : kBackwardThreads), 1) scan_backward(VMDDPM_ARGUMENTS(BackwardArguments) a) {
  using Acc = std::conditional_t<sizeof(E) == 8, double, float>;
  constexpr int kSub = sub_steps(S, sizeof(Acc) == 8, kZoh), kSums = 2 * kSub * S;
  const Seat me(a);
  const int slices = 1 << a.log2_slices;
  const int log2_states = log2_of(S) + a.log2_slices;
  const int first = me.slice * S;  // this thread's first state among those of the launch
  char* shared = gpu::shared();
  BlockWork& w = *reinterpret_cast<BlockWork*>(shared + a.at.work);
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
  const int own = me.place();
  // The inputs from step `first` on, which is step `in_strip` of its strip.
  const auto inputs_at = [=](int first, int in_strip) -> AdjointInputs<Acc, S> {
    return {drive + own + first * kPitchOfPairs, dy + own + first * kPitchOfPairs, matrices + me.slice * kMatrixPitch + first,
            partial + (thread() / kUnit * kStrip + in_strip) * kUnit + me.lane};
  };
  // The element of dB or dC that lane_sums leaves in this lane, and its address for the first steps of a strip.
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
    // Sums over the steps, by chunk first: this shortens the chain of roundings of a long sequence.
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
        replay_steps<S, kSub, kZoh>(inputs_at(sub * kSub, 0), rates, h);
      }
      Acc chunk_dA[2 * S] = {}, dD[2] = {}, dbias[2] = {};
#pragma unroll 1
      for (int sub = last; sub >= 0; --sub) {
        const int in_strip = sub * kSub & (kStrip - 1);
        if (sub < last) load_row(history[sub * threads()].value, h);
        AdjointInputs<Acc, S> inputs = inputs_at(sub * kSub, in_strip);
        const Acc sum = adjoint_steps<S, kSub, kZoh, kUnit>(inputs, rates, h, dh, chunk_dA, me.lane);
        if (me.lane % (kUnit / kSums) == 0) own_sum[in_strip << log2_states] = sum;
        if (in_strip) continue;
        barrier();

        if (a.pairs) {
          combine_slices<true, E>(a, w, steps, sub * kSub, skip, partial, drive, dy, dD, dbias);
        } else {
          combine_slices<false, E>(a, w, steps, sub * kSub, skip, partial, drive, dy, dD, dbias);
        }
        if (S * slices >= 4 && a.states % 4 == 0) {
          combine_tiles<kStrip, 4>(a, w, steps, sub * kSub, a.tiles, log2_states, sums);
        } else {
          combine_tiles<kStrip, 1>(a, w, steps, sub * kSub, a.tiles, log2_states, sums);
        }
        barrier();
      }
      if (!a.pairs && a.dx.by_steps) {
        store_columns<E, Acc>(a.dx, w.dx, steps, w.valid, w.put,
                              [=](int place, int j) { return dy[place].value[j]; });
      }
      if (!a.pairs && a.ddelta.by_steps) {
        store_columns<E, Acc>(a.ddelta, w.ddelta, steps, w.valid, a.put,
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
    // Each thread has summed its own steps of a pair; the threads of all slices share the pair.
    barrier();
    if (seat.slice == 0) {
      Acc total[4];
      sum_of_slices(totals + thread(), slices, kUnit, total);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int c = seat.column + j;
        if (c >= w.valid) continue;
        if (a.dD && a.first_state == 0) static_cast<Acc*>(a.dD)[piece + w.channel + c] = total[j];
        if (a.ddelta_bias) {
          Acc& target = static_cast<Acc*>(a.ddelta_bias)[piece + w.channel + c];
          target = a.first_state > 0 ? target + total[2 + j] : total[2 + j];
        }
      }
    }
  } while (w.route + a.walks < a.routes);
}

template <typename E>
void launch_backward(const BackwardArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  constexpr int S = sizeof(E) == 8 ? 1 : 2;
  const auto kernel = zoh ? &scan_backward<E, S, true> : &scan_backward<E, S, false>;
  launch("scan_backward", kernel, block_count(a), kUnit * plan.slices * plan.tiles, a.at.bytes, stream, a);
}

int64_t matrix_elements(const ScanParams& p) { return p.batch * p.routes * p.length * p.states; }

BackwardArguments backward_arguments(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWorkspace& work) {
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
  a.walks = plan.walks;
  a.images = p.sum_routes ? std::max<int64_t>(1, plan.images) : p.routes;
  a.matrices = plan.matrices;
  a.meet = plan.meet;
  a.log2_slices = log2_of(plan.slices);
  a.tiles = plan.tiles;
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
  a.dC = work.matrices ? static_cast<char*>(work.matrices) + plan.matrices * matrix_elements(p) * size_of(accumulated) : g.dC;
  a.dA = g.dA;
  a.dD = g.dD;
  a.ddelta_bias = g.ddelta_bias;
  a.dstart = g.dinitial_state;
  return a;
}

void scan_part(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWorkspace& work, void* stream) {
  const ScanParams& p = g.forward;
  const int64_t dx_elements = p.batch * p.length * p.channels * (p.sum_routes ? 1 : p.routes);
  BackwardArguments a = backward_arguments(g, plan, work);
  // Clear the images and matrices to which several blocks add.
  std::vector<Sum> zeros;
  const DType accumulated = p.wide ? DType::f64 : DType::f32;
  if (plan.meet) zeros.push_back({nullptr, 0, plan.images * dx_elements, work.images, accumulated});
  if (plan.groups > 1) zeros.push_back({nullptr, 0, 2 * plan.matrices * matrix_elements(p), work.matrices, accumulated});
  fold(zeros, stream);
  if (plan.segments > 1) {
    adjoint_carries(a, g, plan, stream);
    a.start = work.segment_state;
    a.start_by_segment = true;
  }
  a.at = chunk_layout(plan, p);
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    a.first_state = pass * plan.states_per_thread * plan.slices;
    a.put = pass > 0 ? Put::add : Put::set;
    if (plan.states_per_thread * plan.slices == 1) {
      backward_alone(a, p, plan, stream);
      continue;
    }
    switch (p.x.dtype) {
      case DType::f64: launch_backward<double>(a, plan, p.zoh, stream); break;
      case DType::f32: launch_backward<float>(a, plan, p.zoh, stream); break;
      case DType::f16: launch_backward<Half>(a, plan, p.zoh, stream); break;
      case DType::bf16: launch_backward<BFloat16>(a, plan, p.zoh, stream); break;
    }
  }
  std::vector<Sum> sums;
  if (plan.images) sums.push_back({work.images, p.sum_routes ? plan.images : 1, dx_elements, g.dx.data, g.dx.dtype});
  if (work.matrices) {
    sums.push_back({a.dB, plan.matrices, matrix_elements(p), g.dB, work.dB});
    sums.push_back({a.dC, plan.matrices, matrix_elements(p), g.dC, work.dC});
  }
  fold(sums, stream);
}

}  // namespace
}  // namespace gpu

void cuda_scan_backward(const ScanGradParams& g, const GpuScanPlan& plan, const GpuScanWorkspace& work, int device, void* stream) {
  gpu::use_device(device);
  gpu::for_parts(g.forward.batch, plan, [&](int64_t first, int64_t count) {
    gpu::scan_part(gpu::part_of(g, plan, work, first, count), plan, work, stream);
  });
}

}  // namespace vmddpm
