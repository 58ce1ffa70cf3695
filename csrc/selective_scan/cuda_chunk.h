// The steps between two checkpoints, on chip: read once and decoded once for both walks of the adjoint scan.
#pragma once
#include "cuda_work.h"

namespace vmddpm {
namespace gpu {

// Of a thread that goes through the steps of one pair: `first`, first + `stride`, ...
struct PairSteps {
  uint32_t number = opaque(thread());
  int stride, first, pair;
  VMDDPM_DEVICE PairSteps(int log2_pairs, int slices)
      : stride(slices), first(number >> log2_pairs), pair(number & ((1u << log2_pairs) - 1)) {}
  // The column of its first channel, and its place at step 0 of what is [tile][step][lane].
  VMDDPM_DEVICE int column() const { return 2 * pair; }
  VMDDPM_DEVICE int place() const { return tile() * kTilePairs + lane(); }
  VMDDPM_DEVICE int tile() const { return static_cast<uint32_t>(pair) / kUnit; }
  VMDDPM_DEVICE int lane() const { return static_cast<uint32_t>(pair) % kUnit; }
};

// delta, delta x and dy of one step of a pair of which `count` channels are there, zero for others.
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
  const PairSteps own(4 + a.log2_tiles, 1 << a.log2_slices);
  const int count = w.valid - own.column(), column = count > 0 ? own.column() : 0;
  const char* delta_lane = lane_at<kPairs>(a.delta, w.delta, column);
  const char* x_lane = lane_at<kPairs>(a.x, w.x, column);
  const char* dy_lane = lane_at<kPairs>(a.dy, w.dy, column);
  Acc bias[2];
  load_row(biases + own.column(), bias);
  drive += own.place();
  dy += own.place();
#pragma unroll 1
  for (int begin = own.first; begin < padded; begin += kAtOnce * own.stride) {
    RawPair<E> raw_delta[kAtOnce], raw_x[kAtOnce], raw_dy[kAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int32_t pixel = steps.pixels[begin + k * own.stride];
      fetch_pair<kPairs>(a.delta, delta_lane, pixel, count, raw_delta[k]);
      fetch_pair<kPairs>(a.x, x_lane, pixel, count, raw_x[k]);
      if (a.has_dy) fetch_pair<kPairs>(a.dy, dy_lane, pixel, count, raw_dy[k]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int t = begin + k * own.stride;
      decode_pair<kPairs>(a, raw_delta[k], raw_x[k], raw_dy[k], bias, t < steps.count ? count : 0, drive[t * kPitchOfPairs],
                          dy[t * kPitchOfPairs]);
    }
  }
}

// Lanes along the steps, for tensors whose steps are neighbours.
template <typename E, typename Acc>
VMDDPM_DEVICE void decode_by_steps(const BackwardArguments& a, const BlockWork& w, const ChunkSteps& steps,
                                   const Acc* biases, Drive<Acc>* drive, Pair<Acc>* dy) {
#pragma unroll 1
  for (int i = opaque(thread()); i < kChunk * kUnit << a.log2_tiles; i += threads()) {
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

// delta, delta x and dy of a chunk's first `padded` steps, zero beyond the last step and channel. `padded` is a multiple
// of a strip, which is one of the steps that the threads take at once.
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

// B and C of a chunk, S states to a slice, zero beyond the last step and state.
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

template <typename T, typename Acc, typename Value>
VMDDPM_DEVICE void store_columns_as(const PairStream& s, char* block, const ChunkSteps& steps, int valid, bool add, Value value) {
  block = opaque(block);
#pragma unroll 1
  for (int i = opaque(thread()); i < valid * kChunk; i += threads()) {
    const int t = i % kChunk, c = i / kChunk;
    if (t >= steps.count) continue;
    T& target = *reinterpret_cast<T*>(block + wide_product(steps.pixels[t], s.at.step) + c * s.at.column);
    Acc result = value(c / kWarp * kTilePairs + t * kPitchOfPairs + c % kWarp / 2, c % 2);
    if (add) result += static_cast<Acc>(widen(target));
    narrow(result, target);
  }
}

// A whole chunk along its steps, for tensors whose steps are neighbours: value(place, channel of the pair), or += it.
template <typename E, typename Acc, typename Value>
VMDDPM_DEVICE void store_columns(const PairStream& s, char* block, const ChunkSteps& steps, int valid, bool add, Value value) {
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!s.at.wide) return store_columns_as<E, Acc>(s, block, steps, valid, false, value);
  }
  store_columns_as<Acc, Acc>(s, block, steps, valid, add, value);
}

}  // namespace gpu
}  // namespace vmddpm
