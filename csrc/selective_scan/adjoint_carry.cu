// The walk that makes the adjoint of long sequences parallel: the gradient that a segment adds, from its end, to that of the
// state before it.
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

struct AdjointVisits {
  int tiles;
  bool has_dy;
  VMDDPM_DEVICE Visit operator()(int v) const { return {tiles - 1 - v, false, false, true, has_dy}; }
};

template <typename Acc, int S>
VMDDPM_KERNEL(kBackwardThreads, 2) scan_adjoint_carry(VMDDPM_ARGUMENTS(ScanArguments) a) {
  const Place me(a);
  const int log2_states = log2_of(S) + a.log2_slices, log2_width = 5 + a.log2_tiles;
  const int first = me.slice * S;  // of this thread's states among those of the launch
  char* shared = gpu::shared();
  Work& w = *reinterpret_cast<Work*>(shared + a.shared.work);
  Acc* dy_tile = reinterpret_cast<Acc*>(shared + a.shared.x);
  Acc* delta_tile = reinterpret_cast<Acc*>(shared + a.shared.delta);
  Acc* C_tile = reinterpret_cast<Acc*>(shared + a.shared.C);
  Acc* bias = reinterpret_cast<Acc*>(shared + a.shared.bias);
  Acc* skip = reinterpret_cast<Acc*>(shared + a.shared.skip);
  const bool softplus_on = a.softplus;
  const auto as_it_is = [](Acc value, int) { return value; };
  const auto activated = [=](Acc value, int c) {
    const Acc raw = value + bias[c];
    return softplus_on ? softplus(raw) : raw;
  };
  if (thread() == 0) {
    begin_block(a, log2_states, w);
    begin_route(a, w.route, w);
  }
  barrier();
  const int tiles = (w.steps + kSteps - 1) / kSteps;
  Acc rates[S], dh[S] = {}, delta_sum = Acc(0);
  load_rates(a, w, me.column, first, rates);
  load_parameters(a, w, bias, skip);
  const Pipeline<AdjointVisits> pipeline{a, w, {tiles, a.has_dy}, tiles, log2_states};
  pipeline.start();
#pragma unroll 1
  for (int v = 0; v < tiles; ++v) {
    pipeline.await();
    const int count = pipeline.steps_of(v).count;
    const char* stage = pipeline.stage_of(v);
    decode_channels(a.delta, stage + a.shared.raw_delta, count, w.valid, log2_width, delta_tile, activated);
    decode_channels(a.dy, stage + a.shared.raw_dy, a.has_dy ? count : 0, w.valid, log2_width, dy_tile, as_it_is);
    decode_states(a.C, stage + a.shared.raw_C, count, w.states, log2_states, kRow<S>, C_tile);
    barrier();
    pipeline.fetch(v + kStages - 1);
    const int own = place_in_tile(0, me.column);
    constexpr int kUnroll = S >= 4 ? 4 : 8;
#pragma unroll kUnroll
    for (int t = kSteps - 1; t >= 0; --t) {
      // dh_{l-1} = e^v (dh_l + C dy), the adjoint of the step before.
      const Acc delta = delta_tile[own + t * kPitch], dy = dy_tile[own + t * kPitch];
      Acc c[S];
      load_row(C_tile + t * kRow<S> + first, c);
#pragma unroll
      for (int s = 0; s < S; ++s) dh[s] = decay(delta * rates[s]) * (dh[s] + dy * c[s]);
      delta_sum += delta;
    }
  }
  store_piece(a, w, w.segment, a.segments, me.column, first, dh, static_cast<Acc*>(a.segment_state));
  if (a.first_state == 0 && me.slice == 0 && me.column < w.valid) {
    const int64_t row = (w.batch * a.routes + w.route) * a.segments + w.segment;
    static_cast<Acc*>(a.segment_delta)[row * a.channels + w.channel + me.column] = delta_sum;
  }
}

}  // namespace

void adjoint_carries(ScanArguments a, const ScanParams& p, const GpuScanPlan& plan, const void* dlast_state, void* stream) {
  for_each_launch(a, p, plan, false, [&](const ScanArguments& part) {
    const auto kernel = p.wide ? &scan_adjoint_carry<double, 1>
                        : plan.states_per_thread == 1 ? &scan_adjoint_carry<float, 1> : &scan_adjoint_carry<float, 4>;
    launch("scan_adjoint_carry", kernel, block_count(part), block_threads(plan), part.shared.bytes, stream, part);
  });
  combine(p, plan, a.segment_state, a.segment_delta, dlast_state, true, stream);
}

}  // namespace gpu
}  // namespace vmddpm
