// What one thread of the adjoint scan does: the order in which it visits tiles, a few steps at a time, and the sums over
// the channels of its warp.
#pragma once
#include "cuda_block.h"

namespace vmddpm {
namespace gpu {

constexpr int kChunkTiles = static_cast<int>(kGpuChunk) / kSteps;

// The visits of a segment: for each chunk, last first, its tiles forwards and then backwards.
struct BackwardVisits {
  int tiles;
  bool has_dy;

  VMDDPM_DEVICE int tile(int v, bool& backwards) const {
    const int last = (tiles - 1) / kChunkTiles, tiles_of_last = tiles - last * kChunkTiles;
    int chunk = last, place = v, count = tiles_of_last;
    if (v >= 2 * tiles_of_last) {
      const int beyond = v - 2 * tiles_of_last;
      chunk = last - 1 - beyond / (2 * kChunkTiles);
      place = beyond % (2 * kChunkTiles);
      count = kChunkTiles;
    }
    backwards = place >= count;
    return chunk * kChunkTiles + (backwards ? 2 * count - 1 - place : place);
  }

  VMDDPM_DEVICE Visit operator()(int v) const {
    bool backwards;
    const int index = tile(v, backwards);
    return {index, true, true, backwards, backwards && has_dy};
  }
};

// The sum over the lanes of a warp of each of n values (n a power of two, at most 32) by a halving butterfly: at every
// level a lane keeps one half and passes the other on. Lane i returns the sum of value i / (32 / n).
template <int mask = kWarp / 2, int n, typename T>
VMDDPM_DEVICE T lane_sums(const T (&values)[n], int lane) {
  if constexpr (mask == 0) {
    return values[0];
  } else if constexpr (n == 1) {
    T sent[1] = {values[0]};
    exchange(sent, mask);
    const T sum[1] = {values[0] + sent[0]};
    return lane_sums<mask / 2>(sum, lane);
  } else {
    const bool upper = lane & mask;
    T kept[n / 2], sent[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      kept[i] = upper ? values[i + n / 2] : values[i];
      sent[i] = upper ? values[i] : values[i + n / 2];
    }
    exchange(sent, mask);
#pragma unroll
    for (int i = 0; i < n / 2; ++i) kept[i] += sent[i];
    return lane_sums<mask / 2>(kept, lane);
  }
}

// What a few steps of one thread are computed from, and where their results go.
template <typename Acc>
struct Rows {
  const Acc *delta, *x, *dy;    // tiles at this thread's channel
  const Acc *B, *C;             // tiles at this thread's states
  Acc *ddelta, *ddrive;         // this slice's share
};

// kSub steps from `first` on, of S states. With v = delta A and the forward h_l = e^v h_{l-1} + phi(v) drive B:
//   g = dh + C dy,  dC += <dy, h_l>,  dB += <g phi, drive>,  ddrive += g phi B,
//   dv = g (e^v h_{l-1} + phi'(v) drive B),  ddelta += dv A,  dA += dv delta,  dh <- e^v g.
// h holds the states before the first step. Returns this lane's sum over the channels of the warp of one element of dB
// or dC: see lane_sums; the order is dB [step][state], then dC.
template <typename Acc, int S, int kSub, bool kZoh>
VMDDPM_DEVICE Acc adjoint_steps(const Rows<Acc>& at, int first, const Acc (&rates)[S], const Acc (&h)[S], Acc (&dh)[S],
                                Acc (&dA)[S], int lane) {
  Acc state[kSub + 1][S], decays[kSub][S], deltas[kSub], drives[kSub];
#pragma unroll
  for (int s = 0; s < S; ++s) state[0][s] = h[s];
#pragma unroll
  for (int u = 0; u < kSub; ++u) {
    const int t = first + u;
    Acc b[S];
    load_row(at.B + t * kRow<S>, b);
    deltas[u] = at.delta[t * kPitch];
    drives[u] = deltas[u] * at.x[t * kPitch];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Acc v = deltas[u] * rates[s];
      decays[u][s] = decay(v);
      Acc input = drives[u] * b[s];
      if constexpr (kZoh) {
        Acc phi, dphi;
        zoh_weight(v * kRateUnit<Acc>, decays[u][s], phi, dphi);
        input *= phi;
      }
      state[u + 1][s] = decays[u][s] * state[u][s] + input;
    }
  }
  Acc matrices[2 * kSub * S];
#pragma unroll
  for (int u = kSub - 1; u >= 0; --u) {
    const int t = first + u;
    Acc b[S], c[S];
    load_row(at.B + t * kRow<S>, b);
    load_row(at.C + t * kRow<S>, c);
    const Acc dy = at.dy[t * kPitch];
    Acc ddelta = Acc(0), ddrive = Acc(0);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Acc g = dh[s] + dy * c[s];
      Acc weighted = g, dv = Acc(0);
      if constexpr (kZoh) {
        Acc phi, dphi;
        zoh_weight(deltas[u] * rates[s] * kRateUnit<Acc>, decays[u][s], phi, dphi);
        weighted = g * phi;
        dv = g * dphi * drives[u] * b[s];
      }
      matrices[u * S + s] = weighted * drives[u];
      matrices[(kSub + u) * S + s] = dy * state[u + 1][s];
      ddrive += weighted * b[s];
      dh[s] = decays[u][s] * g;
      dv += dh[s] * state[u][s];
      ddelta += dv * rates[s];
      dA[s] += dv * deltas[u];
    }
    at.ddelta[t * kPitch] = ddelta * kRateUnit<Acc>;
    at.ddrive[t * kPitch] = ddrive;
  }
  return lane_sums(matrices, lane);
}

}  // namespace gpu
}  // namespace vmddpm
