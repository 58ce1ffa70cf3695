// Makes the adjoint of long sequences parallel: walks each segment backwards from a zero gradient, for the segment's
// own contribution to the gradient of the state before it.
#include <algorithm>

#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

constexpr int kCarryThreads = 128;

// A thread has one channel and S of its states.
template <typename E, int S>
VMDDPM_KERNEL(kCarryThreads, sizeof(E) == 8 ? 2 : 4) scan_adjoint_carry(VMDDPM_ARGUMENTS(BackwardArguments) a) {
  using Acc = std::conditional_t<sizeof(E) == 8, double, float>;
  char* shared = gpu::shared();
  BlockWork& w = *reinterpret_cast<BlockWork*>(shared + a.at.work);
  int32_t* pixels = reinterpret_cast<int32_t*>(shared + a.at.pixels);
  Acc* C_rows = reinterpret_cast<Acc*>(shared + a.at.matrices);
  if (thread() == 0) {
    begin_block(a, log2_of(S), w);
    next_route(a, w);
  }
  barrier();
  const bool valid = thread() < w.valid;
  const int channel = valid ? thread() : 0;
  const char* delta_lane = lane_at<false>(a.delta, w.delta, channel);
  const char* dy_lane = lane_at<false>(a.dy, w.dy, channel);
  const Acc* biases = static_cast<const Acc*>(a.delta_bias);
  const Acc bias = biases ? biases[w.route * a.channels + w.channel + channel] : Acc(0);
  Acc rates[S], dh[S] = {}, delta_sum = Acc(0);
  load_rates(a, w, thread(), 0, rates);
  const int chunks = (w.steps + kChunk - 1) / kChunk;
  fetch_pixels(w, chunks - 1, pixels);
#pragma unroll 1
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    wait_copies<0>();
    barrier();
    const ChunkSteps steps = steps_of(w, chunk, pixels);
    for (int i = opaque(thread()); i < kChunk * S; i += threads()) {
      const int t = i / S, s = i % S;
      const char* from = lane_at<false>(a.C, w.C, s < w.states ? s : 0) + wide_product(steps.pixels[t], a.C.at.step);
      Acc value;
      if (sizeof(E) == sizeof(Acc) || a.C.at.wide) {
        value = *reinterpret_cast<const Acc*>(from);
      } else {
        value = widen_raw<E>(load_raw<E>(from));
      }
      C_rows[i] = t < steps.count && s < w.states ? value : Acc(0);
    }
    fetch_pixels(w, chunk - 1, pixels);
    barrier();

    Raw<E> raw_delta[kGroup], raw_dy[kGroup] = {};
    const auto fetch = [&](int first) {
      int32_t pixel[kGroup];
      load_row(steps.pixels + first, pixel);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        raw_delta[i] = load_raw<E>(delta_lane + wide_product(pixel[i], a.delta.at.step));
        if (a.has_dy) raw_dy[i] = load_raw<E>(dy_lane + wide_product(pixel[i], a.dy.at.step));
      }
    };
    const int last = (steps.count - 1) / kGroup * kGroup;
    fetch(last);
#pragma unroll 1
    for (int first = last; first >= 0; first -= kGroup) {
      Acc deltas[kGroup], gradients[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        deltas[i] = widen_raw<E>(raw_delta[i]) + bias;
        gradients[i] = widen_raw<E>(raw_dy[i]);
      }
      if (first > 0) fetch(first - kGroup);
#pragma unroll
      for (int i = kGroup - 1; i >= 0; --i) {
        const Acc activated = a.softplus ? softplus(deltas[i]) : deltas[i];
        const Acc delta = first + i < steps.count ? activated : Acc(0);
        Acc c[S];
        load_row(C_rows + (first + i) * S, c);
        // dh_{l-1} = e^v (dh_l + C dy), the adjoint of the step before.
#pragma unroll
        for (int s = 0; s < S; ++s) dh[s] = decay(delta * rates[s]) * (dh[s] + gradients[i] * c[s]);
        delta_sum += delta;
      }
    }
  }
  store_piece(a, w, thread(), 0, dh, static_cast<Acc*>(a.segment_state) + segment_states(a, w));
  if (a.first_state == 0 && valid) {
    const int64_t row = (w.batch * a.routes + w.route) * a.segments + w.segment;
    static_cast<Acc*>(a.segment_delta)[row * a.channels + w.channel + thread()] = delta_sum;
  }
}

template <typename E, int S>
void launch_passes(BackwardArguments a, void* stream) {
  constexpr int kSize = sizeof(E) == 8 ? 8 : 4;
  a.at.pixels = (static_cast<int>(sizeof(BlockWork)) + 15) / 16 * 16;
  a.at.matrices = a.at.pixels + 2 * kChunk * 4;
  a.at.bytes = a.at.matrices + kChunk * S * kSize;
  for (a.first_state = 0; a.first_state < a.states; a.first_state += S) {
    launch("scan_adjoint_carry", &scan_adjoint_carry<E, S>, block_count(a), kWarp * a.tiles, a.at.bytes, stream, a);
  }
}

template <typename E>
void launch_carry(const BackwardArguments& a, void* stream) {
  if (a.states == 1) return launch_passes<E, 1>(a, stream);
  if (sizeof(E) == 8 || a.states <= 4) return launch_passes<E, 4>(a, stream);
  if constexpr (sizeof(E) < 8) launch_passes<E, 16>(a, stream);
}

}  // namespace

void adjoint_carries(BackwardArguments a, const ScanGradParams& g, const GpuScanPlan& plan, void* stream) {
  const ScanParams& p = g.forward;
  a.walks = a.routes;
  // The widest blocks without idle warps.
  const int64_t warps = (a.channels + kWarp - 1) / kWarp;
  for (a.tiles = kCarryThreads / kWarp; warps % a.tiles != 0;) --a.tiles;
  a.groups = warps / a.tiles;
  switch (p.x.dtype) {
    case DType::f64: launch_carry<double>(a, stream); break;
    case DType::f32: launch_carry<float>(a, stream); break;
    case DType::f16: launch_carry<Half>(a, stream); break;
    case DType::bf16: launch_carry<BFloat16>(a, stream); break;
  }
  combine(p, plan, a.segment_state, a.segment_delta, g.dlast_state, true, stream);
}

}  // namespace gpu
}  // namespace vmddpm
