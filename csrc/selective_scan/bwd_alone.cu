// The adjoint scan of one state: a thread does all the work of its two channels.
#include "cuda_adjoint.h"
#include "cuda_combine.h"
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

// The inputs of a few steps of a thread's two channels, in registers; keep() stores dx and ddelta at once.
template <bool kPairs, typename E, typename Acc, int kSub>
struct Alone {
  const BackwardArguments& a;
  const Pair<Acc>* matrices;   // in shared memory, at the first step
  int32_t pixels[kSub];
  int steps, channels;         // existing ones
  Put put;
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
    if (u >= steps || channels <= 0) return;  // padding: the state and its gradient pass through
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      dD[j] += gradients[u][j] * xs[u][j];
      dbias[j] += ddeltas[j];
    }
    store_pair<kPairs, E>(a.dx, dx, pixels[u], channels, put, more);
    store_pair<kPairs, E>(a.ddelta, ddelta, pixels[u], channels, Put::set, ddeltas);
  }
};

// The adjoint scan of one state. A thread reads its two channels for itself, a few steps ahead of their use. Shared
// memory holds delta, the states of every few steps, and the block's B and C.
template <bool kPairs, typename E, bool kZoh>
VMDDPM_KERNEL(kAloneThreads, kZoh || sizeof(E) == 8 ? 2 : kPairs ? 4 : 3) scan_backward_alone(VMDDPM_ARGUMENTS(BackwardArguments) a) {
  using Acc = std::conditional_t<sizeof(E) == 8, double, float>;
  constexpr int kSub = alone_steps(sizeof(E) == 8, kZoh), kSums = 2 * kSub;
  char* shared = gpu::shared();
  BlockWork& w = *reinterpret_cast<BlockWork*>(shared + a.at.work);
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
    at.put = w.put;
    at.dx = lane_at<kPairs>(a.dx, w.dx, column);
    at.ddelta = lane_at<kPairs>(a.ddelta, w.ddelta, column);
    Acc rates[2], h[2], dh[2], bias[2];
    // Sums over the steps, by chunk first: this shortens the chain of roundings of a long sequence.
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
  } while (w.route + a.walks < a.routes);
}

template <typename E>
void launch_alone(const BackwardArguments& a, const GpuScanPlan& plan, bool zoh, void* stream) {
  auto kernel = a.pairs ? &scan_backward_alone<true, E, false> : &scan_backward_alone<false, E, false>;
  if (zoh) kernel = a.pairs ? &scan_backward_alone<true, E, true> : &scan_backward_alone<false, E, true>;
  launch("scan_backward_alone", kernel, block_count(a), kUnit * plan.tiles, a.at.bytes, stream, a);
}

}  // namespace

void backward_alone(const BackwardArguments& a, const ScanParams& p, const GpuScanPlan& plan, void* stream) {
  switch (p.x.dtype) {
    case DType::f64: return launch_alone<double>(a, plan, p.zoh, stream);
    case DType::f32: return launch_alone<float>(a, plan, p.zoh, stream);
    case DType::f16: return launch_alone<Half>(a, plan, p.zoh, stream);
    case DType::bf16: return launch_alone<BFloat16>(a, plan, p.zoh, stream);
  }
}

}  // namespace gpu
}  // namespace vmddpm
