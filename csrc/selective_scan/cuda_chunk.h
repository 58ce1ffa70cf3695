// A chunk in shared memory: read and decoded once for both walks of the adjoint scan.
#pragma once
#include "cuda_work.h"

namespace vmddpm {
namespace gpu {

// This thread's place in its block. Slices divide their common work by steps: each takes every `slices`-th of its pair.
struct Seat {
  int lane, slice, tile;              // its lane within the unit; the unit's slice and tile
  int column;                         // its first channel within the block
  VMDDPM_DEVICE explicit Seat(const BackwardArguments& a)
      : lane(opaque(thread()) % kUnit),
        slice(opaque(thread()) / kUnit & ((1 << a.log2_slices) - 1)),
        tile(opaque(thread()) / kUnit >> a.log2_slices),
        column(tile * kWarp + 2 * lane) {}
  // The index of step 0 in an array [tile][step][lane].
  VMDDPM_DEVICE int place() const { return tile * kTilePairs + lane; }
};

// Decodes delta, delta x and dy of one step of a pair with `count` existing channels; the others are zero.
template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void decode_pair(const BackwardArguments& a, const RawPair<E>& raw_delta, const RawPair<E>& raw_x,
                               const RawPair<E>& raw_dy, const Acc (&bias)[2], int count, Drive<Acc>& drive, Pair<Acc>& dy) {
  Acc delta[2], x[2], gradient[2], step[4];
  values_of<kPairs>(raw_delta, delta);
  values_of<kPairs>(raw_x, x);
  values_of<kPairs>(raw_dy, gradient);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    delta[j] += bias[j];
    if (a.softplus) delta[j] = softplus(delta[j]);
    step[j] = j < count ? delta[j] : Acc(0);
    step[2 + j] = j < count ? delta[j] * x[j] : Acc(0);
    if (j >= count) gradient[j] = Acc(0);
  }
  store_row(drive.value, step);
  store_row(dy.value, gradient);
}

template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void decode_channels_as(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                      int padded, const Acc* biases, Drive<Acc>* drive, Pair<Acc>* dy) {
  const Seat own(a);
  const int slices = 1 << a.log2_slices;
  const int count = w.valid - own.column, column = count > 0 ? own.column : 0;
  const char* delta_lane = lane_at<kPairs>(a.delta, w.delta, column);
  const char* x_lane = lane_at<kPairs>(a.x, w.x, column);
  const char* dy_lane = lane_at<kPairs>(a.dy, w.dy, column);
  Acc bias[2];
  load_row(biases + own.column, bias);
  drive += own.place();
  dy += own.place();
  const auto take = [&](int begin, auto at_once) {
    constexpr int n = decltype(at_once)::value;
    RawPair<E> raw_delta[n], raw_x[n], raw_dy[n] = {};
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const int32_t pixel = steps.pixels[begin + k * slices];
      fetch_pair<kPairs>(a.delta, delta_lane, pixel, count, raw_delta[k]);
      fetch_pair<kPairs>(a.x, x_lane, pixel, count, raw_x[k]);
      if (a.has_dy) fetch_pair<kPairs>(a.dy, dy_lane, pixel, count, raw_dy[k]);
    }
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const int t = begin + k * slices;
      decode_pair<kPairs>(a, raw_delta[k], raw_x[k], raw_dy[k], bias, t < steps.count ? count : 0, drive[t * kPitchOfPairs],
                          dy[t * kPitchOfPairs]);
    }
  };
  int begin = own.slice;
#pragma unroll 1
  for (; begin + (kAtOnce - 1) * slices < padded; begin += kAtOnce * slices) take(begin, std::integral_constant<int, kAtOnce>());
#pragma unroll 1
  for (; begin < padded; begin += slices) take(begin, std::integral_constant<int, 1>());
}

// Puts neighbouring lanes on neighbouring steps, for tensors with contiguous steps.
template <typename E, typename Acc>
VMDDPM_DEVICE void decode_by_steps(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                   const Acc* biases, Drive<Acc>* drive, Pair<Acc>* dy) {
#pragma unroll 1
  for (int i = opaque(thread()); i < kChunk * kUnit * a.tiles; i += threads()) {
    const int t = i % kChunk, pair = i / kChunk, place = pair / kUnit * kTilePairs + t * kPitchOfPairs + pair % kUnit;
    const int count = w.valid - 2 * pair, column = count > 0 ? 2 * pair : 0;
    const int32_t pixel = steps.pixels[t];
    RawPair<E> raw_delta, raw_x, raw_dy = {};
    fetch_pair<false>(a.delta, lane_at<false>(a.delta, w.delta, column), pixel, count, raw_delta);
    fetch_pair<false>(a.x, lane_at<false>(a.x, w.x, column), pixel, count, raw_x);
    if (a.has_dy) fetch_pair<false>(a.dy, lane_at<false>(a.dy, w.dy, column), pixel, count, raw_dy);
    Acc bias[2];
    load_row(biases + 2 * pair, bias);
    decode_pair<false>(a, raw_delta, raw_x, raw_dy, bias, t < steps.count ? count : 0, drive[place], dy[place]);
  }
}

// Decodes delta, delta x and dy of a chunk's first `padded` steps, zero beyond the last step and channel.
template <typename E, typename Acc>
VMDDPM_DEVICE void decode_channels(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                   int padded, const Acc* biases, Drive<Acc>* drive, Pair<Acc>* dy) {
  if (a.pairs) {
    decode_channels_as<true, E>(a, w, steps, padded, biases, drive, dy);
  } else if (a.delta.by_steps) {
    decode_by_steps<E>(a, w, steps, biases, drive, dy);
  } else {
    decode_channels_as<false, E>(a, w, steps, padded, biases, drive, dy);
  }
}

// Decodes B and C of a chunk, S states per slice, zero beyond the last step and state.
template <typename T, typename Acc, int S>
VMDDPM_DEVICE void decode_matrices_as(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                      Pack<Acc, 2 * S>* matrices) {
  const bool by_steps = a.B.by_steps;
#pragma unroll 1
  for (int i = opaque(thread()); i < kChunk << a.log2_slices; i += threads()) {
    const int t = by_steps ? i % kChunk : i >> a.log2_slices;
    const int slice = by_steps ? i / kChunk : i & ((1 << a.log2_slices) - 1);
    const int count = t < steps.count ? w.states - slice * S : 0, column = count > 0 ? slice * S : 0;
    const int32_t pixel = steps.pixels[t];
    const char* b = lane_at<false>(a.B, w.B, column) + wide_product(pixel, a.B.at.step);
    const char* c = lane_at<false>(a.C, w.C, column) + wide_product(pixel, a.C.at.step);
    Acc values[2 * S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      values[s] = s < count ? widen_raw<T>(load_raw<T>(b + s * a.B.at.column)) : Acc(0);
      values[S + s] = s < count ? widen_raw<T>(load_raw<T>(c + s * a.C.at.column)) : Acc(0);
    }
    store_row(matrices[slice * kMatrixPitch + t].value, values);
  }
}

template <typename E, typename Acc, int S>
VMDDPM_DEVICE void decode_matrices(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                   Pack<Acc, 2 * S>* matrices) {
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!a.B.at.wide) return decode_matrices_as<E, Acc, S>(a, w, steps, matrices);
  }
  decode_matrices_as<Acc, Acc, S>(a, w, steps, matrices);
}

// Stores a whole chunk along its steps, for tensors with contiguous steps, from value(place, channel of the pair).
template <typename E, typename Acc, typename Value>
VMDDPM_DEVICE void store_columns(const PairStream& s, char* block, const ChunkSteps& steps, int valid, Put how, Value value) {
  block = opaque(block);
  stored_as<E, Acc>(s.at.wide, how, [&](Put how, auto element) {
#pragma unroll 1
    for (int i = opaque(thread()); i < valid * kChunk; i += threads()) {
      const int t = i % kChunk, c = i / kChunk;
      if (t >= steps.count) continue;
      char* to = block + wide_product(steps.pixels[t], s.at.step) + c * s.at.column;
      put(how, value(c / kWarp * kTilePairs + t * kPitchOfPairs + c % kWarp / 2, c % 2), reinterpret_cast<decltype(element)*>(to));
    }
  });
}

}  // namespace gpu
}  // namespace vmddpm
