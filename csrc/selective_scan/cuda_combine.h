// Sums over the slices and tiles of a block of the adjoint scan, after every strip of steps.
#pragma once
#include "cuda_chunk.h"

namespace vmddpm {
namespace gpu {

// The sum of a step's Drive over slices, `apart` elements from one to the next.
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

// Sums a strip of steps over slices and stores dx and ddelta of its pairs, by the chain rule for drive = delta x,
// softplus and y's term D x.
template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void combine_slices(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                  int begin, const Acc* skips, const Drive<Acc>* partial, Drive<Acc>* drive,
                                  Pair<Acc>* dy, Acc (&dD)[2], Acc (&dbias)[2]) {
  const int slices = 1 << a.log2_slices;
  const Seat own(a);
  const int count = w.valid - own.column;
  if (count <= 0) return;
  const char* x_lane = lane_at<kPairs>(a.x, w.x, own.column);
  char* dx_lane = lane_at<kPairs>(a.dx, w.dx, own.column);
  char* ddelta_lane = lane_at<kPairs>(a.ddelta, w.ddelta, own.column);
  partial += (own.tile << a.log2_slices) * kStrip * kUnit + own.lane;
  Acc skip[2];
  load_row(skips + own.column, skip);
#pragma unroll 1
  for (int u = own.slice; u < kStrip; u += slices) {
    const int t = begin + u;
    if (t >= steps.count) break;  // padding: the state and its gradient pass through
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
      store_pair<kPairs, E>(a.dx, dx_lane, pixel, count, w.put, dx);
    }
    if (!kPairs && a.ddelta.by_steps) {
      store_row(step.value, ddelta);
    } else {
      store_pair<kPairs, E>(a.ddelta, ddelta_lane, pixel, count, a.put, ddelta);
    }
  }
}

// Sums a strip of steps over tiles and stores rows of dB and dC, n states at once.
template <int kRows, int n, typename Acc>
VMDDPM_DEVICE void combine_tiles(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                 int begin, int tiles, int log2_states, const Acc* sums) {
  const int share = 2 * kRows << log2_states;  // elements per tile
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
    Acc* to = static_cast<Acc*>(row < kRows ? a.dB : a.dC) + w.matrices + element;
    put_row(a.groups > 1 ? Put::add : Put::set, sum, to);
  }
}

}  // namespace gpu
}  // namespace vmddpm
