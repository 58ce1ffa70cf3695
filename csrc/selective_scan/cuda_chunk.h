// The backward's steps between two checkpoints, on chip: read once and decoded once for both of its walks.
//
// A lane has two neighbouring channels, so a unit of 16 lanes has 32, which is what a tile is. Warps of two units read
// either two slices of the states of the same channels, or two tiles.
#pragma once
#include "../common/gpu_stream.h"
#include "cuda_block.h"

namespace vmddpm {
namespace gpu {

constexpr int kChunk = static_cast<int>(kGpuChunk);
constexpr int kUnit = kWarp / 2;
constexpr int kPitchOfPairs = kUnit + 1;              // lanes along steps meet few banks twice
constexpr int kTilePairs = kChunk * kPitchOfPairs;
constexpr int kMostUnits = 8;                         // slices of a channel's states
constexpr int kMatrixPitch = kChunk + 1;              // steps of a slice's B and C

// Steps whose states the backward holds in registers at once, of S states of two channels.
VMDDPM_CONSTANT int sub_steps(int S, bool wide, bool zoh) { return 8 / S / (wide ? 2 : 1) / (zoh ? 2 : 1); }

template <typename Acc>
using Pair = Pack<Acc, 2>;

// What a step of two channels is computed from: delta, then delta x, of each.
template <typename Acc>
using Drive = Pack<Acc, 4>;

// Byte offsets into a block's shared memory.
struct ChunkLayout {
  int32_t work, pixels;   // pixels of two chunks
  int32_t drive, dy;      // Drive and Pair [tile][step][lane]
  int32_t matrices;       // B, then C: Pack<Acc, 2 S> [slice][step]
  int32_t history;        // states [sub-step][thread]
  int32_t partial;        // Drive [tile][slice][step of a strip][lane]: ddelta and ddrive to be added up
  int32_t sums;           // dB and dC [tile][which][step of a strip][state]
  int32_t bias, skip;     // delta_bias and D of the block's channels
  int32_t strip;          // steps after which the slices add up
  int32_t bytes;
};

// A tensor of two channels to a lane.
struct PairStream {
  Stream at;
  bool pairs;      // two neighbours, the first of them even, are one aligned access
  bool by_steps;   // steps are closer to one another than channels: lanes go along them
};

struct BackwardArguments : ScanArguments {
  ChunkLayout at;
  PairStream x_in, delta_in, dy_in, B_in, C_in, dx_out, ddelta_out;
};

// `wide`: of the accumulation's type where others may be narrower.
inline PairStream make_pair_stream(const View& view, const int64_t (&sizes)[4], bool wide) {
  PairStream s{make_stream(view, sizes, false, wide), false, false};
  const int64_t pair = int64_t{2} << log2_size(view.dtype);
  const auto aligned = [&](int64_t bytes) { return bytes % pair == 0; };
  s.pairs = s.at.column * 2 == pair && sizes[3] % 2 == 0 && aligned(reinterpret_cast<intptr_t>(view.data)) &&
            aligned(s.at.batch) && aligned(s.at.route) && aligned(s.at.step);
  s.by_steps = sizes[3] > 1 && magnitude(s.at.column) > magnitude(s.at.step);
  return s;
}

template <typename E>
struct RawPair {
  Raw<E> raw[2];  // where elements have two bytes and make a pair, both are in the first
};

// The elements at `column`, of which `count` (1 or more) exist, and the next; the first twice where it is the last.
template <typename E>
VMDDPM_DEVICE RawPair<E> fetch_pair(const PairStream& s, const char* block, int64_t pixel, int column, int count) {
  RawPair<E> pair{};
  const char* from = block + pixel * s.at.step + column * s.at.column;
  if (s.pairs) {
    if constexpr (sizeof(E) == 2) {
      pair.raw[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      load_row(reinterpret_cast<const E*>(from), pair.raw);
    }
  } else {
    pair.raw[0] = load_raw<E>(from);
    pair.raw[1] = load_raw<E>(from + (count > 1 ? s.at.column : 0));
  }
  return pair;
}

template <typename E, typename Acc>
VMDDPM_DEVICE void values_of(const PairStream& s, const RawPair<E>& pair, Acc (&values)[2]) {
  Raw<E> second = pair.raw[1];
  if constexpr (sizeof(E) == 2) {
    if (s.pairs) second = pair.raw[0] >> 16;
  }
  values[0] = widen_raw<E>(pair.raw[0]);
  values[1] = widen_raw<E>(second);
}

template <typename T, typename Acc>
VMDDPM_DEVICE void store_pair_as(const PairStream& s, char* block, int64_t pixel, int column, int count, bool add,
                                 const Acc (&values)[2]) {
  char* to = block + pixel * s.at.step + column * s.at.column;
  T results[2];
  if (s.pairs) {
    if (add) load_row(reinterpret_cast<const T*>(to), results);
#pragma unroll
    for (int j = 0; j < 2; ++j) narrow(add ? values[j] + static_cast<Acc>(widen(results[j])) : values[j], results[j]);
    store_row(reinterpret_cast<T*>(to), results);
    return;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j, to += s.at.column) {
    if (j >= count) continue;
    T& target = *reinterpret_cast<T*>(to);
    narrow(add ? values[j] + static_cast<Acc>(widen(target)) : values[j], target);
  }
}

// Two values from `column` on, of which `count` exist, or adds them to what is there, which is then of the accumulation's
// type.
template <typename E, typename Acc>
VMDDPM_DEVICE void store_pair(const PairStream& s, char* block, int64_t pixel, int column, int count, bool add,
                              const Acc (&values)[2]) {
  if (count <= 0) return;
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!s.at.wide) return store_pair_as<E>(s, block, pixel, column, count, false, values);
  }
  if (add) return store_pair_as<Acc>(s, block, pixel, column, count, true, values);
  store_pair_as<Acc>(s, block, pixel, column, count, false, values);
}

// The steps of a chunk: `pixels` (in shared memory) says where each stands, or they stand at first, first + 1, ...
VMDDPM_DEVICE int64_t pixel_within(const TileSteps& steps, int t) { return steps.pixel(t < steps.count ? t : steps.count - 1); }

// The pair that thread i of a loop over steps and pairs takes: neighbouring threads neighbours in memory.
struct PairCell {
  int t, pair;
  VMDDPM_DEVICE PairCell(int i, bool by_steps, int log2_pairs)
      : t(by_steps ? i % kChunk : i >> log2_pairs), pair(by_steps ? i / kChunk : i & ((1 << log2_pairs) - 1)) {}
  VMDDPM_DEVICE int column() const { return 2 * pair; }
  // In what is [tile][step][lane].
  VMDDPM_DEVICE int place() const { return (pair / kUnit * kChunk + t) * kPitchOfPairs + pair % kUnit; }
};

// delta, delta x and dy of a chunk's first `padded` steps, zero beyond the last step and channel.
template <typename E, typename Acc>
VMDDPM_DEVICE void decode_channels(const BackwardArguments& a, const Work& w, const TileSteps& steps, int padded,
                                   Drive<Acc>* drive, Pair<Acc>* dy) {
  const Acc* bias = reinterpret_cast<const Acc*>(gpu::shared() + a.at.bias);
  const int log2_pairs = 4 + a.log2_tiles;
  const bool by_steps = a.delta_in.by_steps;
  const int end = (by_steps ? kChunk : padded) << log2_pairs;
  const char* delta_block = lane_of(a.delta_in.at, w.batch, w.route, w.channel);
  const char* x_block = lane_of(a.x_in.at, w.batch, w.route, w.channel);
  const char* dy_block = lane_of(a.dy_in.at, w.batch, w.route, w.channel);
#pragma unroll 1
  for (int begin = opaque(thread()); begin < end; begin += kAtOnce * threads()) {
    RawPair<E> raw_delta[kAtOnce], raw_x[kAtOnce], raw_dy[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const PairCell cell(begin + k * threads(), by_steps, log2_pairs);
      const int count = w.valid - cell.column(), c = count > 0 ? cell.column() : 0;
      const int64_t pixel = pixel_within(steps, cell.t);
      raw_delta[k] = fetch_pair<E>(a.delta_in, delta_block, pixel, c, count);
      raw_x[k] = fetch_pair<E>(a.x_in, x_block, pixel, c, count);
      raw_dy[k] = a.has_dy ? fetch_pair<E>(a.dy_in, dy_block, pixel, c, count) : RawPair<E>{};
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const PairCell cell(begin + k * threads(), by_steps, log2_pairs);
      if (cell.t >= kChunk || cell.pair >> log2_pairs) break;
      const int count = cell.t < steps.count ? w.valid - cell.column() : 0;
      Acc delta[2], x[2], gradient[2], shift[2], step[4];
      values_of(a.delta_in, raw_delta[k], delta);
      values_of(a.x_in, raw_x[k], x);
      values_of(a.dy_in, raw_dy[k], gradient);
      load_row(bias + cell.column(), shift);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        delta[j] += shift[j];
        if (a.softplus) delta[j] = softplus(delta[j]);
        step[j] = j < count ? delta[j] : Acc(0);
        step[2 + j] = j < count ? delta[j] * x[j] : Acc(0);
        if (j >= count) gradient[j] = Acc(0);
      }
      store_row(drive[cell.place()].value, step);
      store_row(dy[cell.place()].value, gradient);
    }
  }
}

// B or C of a chunk, S states to a slice, zero beyond the last step and state; which: 0 is B, 1 is C.
template <typename T, typename Acc, int S>
VMDDPM_DEVICE void decode_matrix_as(const PairStream& in, const char* block, const TileSteps& steps, int valid,
                                    int log2_slices, int which, Pack<Acc, 2 * S>* matrices) {
#pragma unroll 1
  for (int i = opaque(thread()); i < kChunk << log2_slices; i += threads()) {
    const int t = in.by_steps ? i % kChunk : i >> log2_slices;
    const int slice = in.by_steps ? i / kChunk : i & ((1 << log2_slices) - 1);
    const int count = valid - slice * S, column = count > 0 ? slice * S : 0;
    const int64_t pixel = pixel_within(steps, t);
    Acc values[S];
    if constexpr (S == 2) {
      values_of(in, fetch_pair<T>(in, block, pixel, column, count), values);
    } else {
      values[0] = widen_raw<T>(load_raw<T>(block + pixel * in.at.step + column * in.at.column));
    }
#pragma unroll
    for (int s = 0; s < S; ++s) {
      if (t >= steps.count || s >= count) values[s] = Acc(0);
    }
    store_row(matrices[slice * kMatrixPitch + t].value + which * S, values);
  }
}

template <typename E, typename Acc, int S>
VMDDPM_DEVICE void decode_matrix(const PairStream& in, const Work& w, int64_t first_state, const TileSteps& steps,
                                 int log2_slices, int which, Pack<Acc, 2 * S>* matrices) {
  const char* block = lane_of(in.at, w.batch, w.route, first_state);
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!in.at.wide) return decode_matrix_as<E, Acc, S>(in, block, steps, w.states, log2_slices, which, matrices);
  }
  decode_matrix_as<Acc, Acc, S>(in, block, steps, w.states, log2_slices, which, matrices);
}

template <typename T, typename Acc, typename Value>
VMDDPM_DEVICE void store_columns_as(const PairStream& s, char* block, const TileSteps& steps, int valid, bool add, Value value) {
#pragma unroll 1
  for (int i = opaque(thread()); i < valid * kChunk; i += threads()) {
    const int t = i % kChunk, c = i / kChunk;
    if (t >= steps.count) continue;
    T& target = *reinterpret_cast<T*>(block + steps.pixel(t) * s.at.step + c * s.at.column);
    Acc result = value(t, c);
    if (add) result += static_cast<Acc>(widen(target));
    narrow(result, target);
  }
}

// A whole chunk along its steps, for tensors whose steps are neighbours: value(step, column), or += it.
template <typename E, typename Acc, typename Value>
VMDDPM_DEVICE void store_columns(const PairStream& s, char* block, const TileSteps& steps, int valid, bool add, Value value) {
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!s.at.wide) return store_columns_as<E, Acc>(s, block, steps, valid, false, value);
  }
  store_columns_as<Acc, Acc>(s, block, steps, valid, add, value);
}

}  // namespace gpu
}  // namespace vmddpm
