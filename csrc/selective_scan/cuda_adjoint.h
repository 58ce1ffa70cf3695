// One thread's part of the adjoint scan: a few steps of two channels at a time, and the sums over its unit's channels.
#pragma once
#include "cuda_work.h"

namespace vmddpm {
namespace gpu {

// Sums each of n values (a power of two, at most 2 mask) over 2 mask neighbouring lanes by a halving butterfly: at
// every level a lane keeps one half of its values and sends the other. Lane i returns the sum of value
// i / (2 mask / n). Testing the lane's bit as a sign takes one instruction fewer than the compiler's own way.
template <int mask, int n, typename T>
VMDDPM_DEVICE T lane_sums(const T (&values)[n], int lane) {
  if constexpr (mask == 0) {
    return values[0];
  } else if constexpr (n == 1) {
    T sent[1] = {values[0]};
    exchange(sent, mask);
    const T sum[1] = {values[0] + sent[0]};
    return lane_sums<mask / 2>(sum, lane);
  } else {
    const bool upper = opaque(static_cast<int>(lane * (0x80000000u / mask))) < 0;
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

// The inputs of a few steps for a thread's channels and states, in shared memory; u is the step.
template <typename Acc, int S>
struct AdjointInputs {
  const Drive<Acc>* drive;
  const Pair<Acc>* dy;
  const Pack<Acc, 2 * S>* matrices;
  Drive<Acc>* partial;

  VMDDPM_DEVICE void step(int u, Acc (&values)[4]) const { load_row(drive[u * kPitchOfPairs].value, values); }
  VMDDPM_DEVICE void gradient(int u, Acc (&values)[2]) const { load_row(dy[u * kPitchOfPairs].value, values); }
  VMDDPM_DEVICE void B(int u, Acc (&values)[S]) const { load_row(matrices[u].value, values); }
  VMDDPM_DEVICE void B_and_C(int u, Acc (&values)[2 * S]) const { load_row(matrices[u].value, values); }
  VMDDPM_DEVICE void keep(int u, const Acc (&results)[4]) { store_row(partial[u * kUnit].value, results); }
};

// The decays and inputs of one step, for S states of two channels [channel][state].
template <typename Acc, int S, bool kZoh>
VMDDPM_DEVICE void decays_and_inputs(const Acc (&step)[4], const Acc (&B)[S], const Acc (&rates)[2 * S], Acc (&decays)[2 * S],
                                     Acc (&inputs)[2 * S]) {
#pragma unroll
  for (int i = 0; i < 2 * S; ++i) {
    const Acc v = step[i / S] * rates[i];
    decays[i] = decay(v);
    inputs[i] = step[2 + i / S] * B[i % S];
    if constexpr (kZoh) {
      Acc phi, dphi;
      zoh_weight(v * kRateUnit<Acc>, decays[i], phi, dphi);
      inputs[i] *= phi;
    }
  }
}

// Advances the states by kSub steps.
template <int S, int kSub, bool kZoh, typename Acc, typename At>
VMDDPM_DEVICE void replay_steps(const At& at, const Acc (&rates)[2 * S], Acc (&h)[2 * S]) {
#pragma unroll
  for (int u = 0; u < kSub; ++u) {
    Acc step[4], b[S], decays[2 * S], inputs[2 * S];
    at.step(u, step);
    at.B(u, b);
    decays_and_inputs<Acc, S, kZoh>(step, b, rates, decays, inputs);
#pragma unroll
    for (int i = 0; i < 2 * S; ++i) h[i] = decays[i] * h[i] + inputs[i];
  }
}

// kSub steps of S states of two channels. With v = delta A and the forward
// h_l = e^v h_{l-1} + phi(v) drive B:
//   g = dh + C dy,  dC += <dy, h_l>,  dB += <g phi, drive>,  ddrive += g phi B,
//   dv = g (e^v h_{l-1} + phi'(v) drive B),  ddelta += dv A,  dA += dv delta,  dh <- e^v g.
// h holds the states before the first step; at.keep(step, {ddelta, ddrive}) receives the sums over the states of a
// step. Returns one element of dB or dC summed over the channels of kLanes lanes: lane_sums says which, in the order dB
// [step][state], then dC.
template <int S, int kSub, bool kZoh, int kLanes, typename Acc, typename At>
VMDDPM_DEVICE Acc adjoint_steps(At& at, const Acc (&rates)[2 * S], const Acc (&h)[2 * S], Acc (&dh)[2 * S],
                                Acc (&dA)[2 * S], int lane) {
  Acc state[kSub + 1][2 * S], decays[kSub][2 * S];
#pragma unroll
  for (int i = 0; i < 2 * S; ++i) state[0][i] = h[i];
#pragma unroll
  for (int u = 0; u < kSub; ++u) {
    Acc step[4], b[S], inputs[2 * S];
    at.step(u, step);
    at.B(u, b);
    decays_and_inputs<Acc, S, kZoh>(step, b, rates, decays[u], inputs);
#pragma unroll
    for (int i = 0; i < 2 * S; ++i) state[u + 1][i] = decays[u][i] * state[u][i] + inputs[i];
  }
  Acc sums[2 * kSub * S];
#pragma unroll
  for (int u = kSub - 1; u >= 0; --u) {
    Acc step[4], dy[2], matrices[2 * S], results[4] = {};
    at.step(u, step);
    at.gradient(u, dy);
    at.B_and_C(u, matrices);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Acc b = matrices[s], c = matrices[S + s];
      Acc dB = Acc(0), dC = Acc(0);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int i = j * S + s;
        const Acc g = dh[i] + dy[j] * c;
        Acc weighted = g, dv = Acc(0);
        if constexpr (kZoh) {
          Acc phi, dphi;
          zoh_weight(step[j] * rates[i] * kRateUnit<Acc>, decays[u][i], phi, dphi);
          weighted = g * phi;
          dv = g * dphi * step[2 + j] * b;
        }
        dB += weighted * step[2 + j];
        dC += dy[j] * state[u + 1][i];
        results[2 + j] += weighted * b;
        dh[i] = decays[u][i] * g;
        dv += dh[i] * state[u][i];
        results[j] += dv * rates[i];
        dA[i] += dv * step[j];
      }
      sums[u * S + s] = dB;
      sums[(kSub + u) * S + s] = dC;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) results[j] *= kRateUnit<Acc>;
    at.keep(u, results);
  }
  return lane_sums<kLanes / 2>(sums, lane);
}

}  // namespace gpu
}  // namespace vmddpm
