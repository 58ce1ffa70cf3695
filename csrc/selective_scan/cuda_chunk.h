// The backward's steps between two checkpoints, on chip: read once and decoded once for both of its walks.
//
// A lane has two neighbouring channels, so a unit of 16 lanes has 32, which is what a tile is. Warps of two units read
// either two slices of the states of the same channels, or two tiles.
#pragma once
#include "../common/gpu_math.h"
#include "../common/gpu_stream.h"
#include "cuda.h"

namespace vmddpm {
namespace gpu {

constexpr int kChunk = static_cast<int>(kGpuChunk);
constexpr int kUnit = kWarp / 2;
constexpr int kPitchOfPairs = kUnit + 1;              // lanes along steps meet few banks twice
constexpr int kTilePairs = kChunk * kPitchOfPairs;
constexpr int kStrip = 8;                             // steps after which slices add up
constexpr int kMostUnits = 8;                         // slices of a channel's states
constexpr int kMatrixPitch = kChunk + 1;              // steps of a slice's B and C

// Steps whose states the backward holds in registers at once, of S states of two channels.
VMDDPM_CONSTANT int sub_steps(int S, bool wide, bool zoh) { return 8 / S / (wide ? 2 : 1) / (zoh ? 2 : 1); }

// The same of a thread that has the only state of its channels.
VMDDPM_CONSTANT int alone_steps(bool wide, bool zoh) { return 4 / (wide ? 2 : 1) / (zoh ? 2 : 1); }

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
  int32_t totals;         // Drive [thread]: the gradients of D and of delta_bias, of the chunks so far
  int32_t bias, skip;     // delta_bias and D of the block's channels
  int32_t bytes;
};

// A tensor of two channels to a lane.
struct PairStream {
  Stream at;
  bool pairs;      // two neighbours, the first of them even, are one aligned access
  bool by_steps;   // steps are closer to one another than channels: lanes go along them
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

struct BackwardArguments {
  int64_t batch, routes, length, channels, states;
  int64_t first_state;                // of this launch
  int64_t groups, segments, segment, chunks;
  int64_t piece;                      // states of all channels: of a checkpoint, of a segment
  int64_t images;                     // a block walks every images-th route, and adds up what they give dx
  int32_t log2_slices, log2_tiles;
  bool softplus, has_dy;
  bool add;                           // to what a launch before this one gave dx and ddelta
  bool pairs;                         // all of x, delta, dy, dx and ddelta are read and written in pairs
  bool start_by_segment;
  ChunkLayout at;
  PairStream x, delta, dy, B, C, dx, ddelta;
  const void *A, *D, *delta_bias;
  const int32_t* table;
  const void* start;                  // gradients of the states: (B, K, D, N), or (B, K, segments, N, D); null is zero
  const void* checkpoints;
  void *segment_state, *segment_delta;
  void *dB, *dC, *dA, *dD, *ddelta_bias, *dstart;
};

// A block's piece of the work. It lives in shared memory: every thread needs it, seldom, and a register each for its
// numbers would be missing where the recurrences run.
struct Work {
  int64_t batch, image, group, segment, channel;  // `channel` is the block's first
  int64_t first_step;
  int32_t steps;                           // of the segment
  int32_t valid;                           // channels of the block that exist
  int32_t states;                          // states that exist, of those of this launch
  // Of the route at hand: where tensors begin, at the block's first channel or state.
  int64_t route;                           // before the first: that less a.images
  bool adds;                               // dx, to what is there
  char *x, *delta, *dy, *B, *C, *dx, *ddelta;
  int64_t matrices;                        // rows of dB and dC, in elements
  int64_t checkpoints;                     // those of the segment, likewise
  const int32_t* table;                    // at the segment's first step
};

// For the first thread of a block.
VMDDPM_DEVICE void begin_block(const BackwardArguments& a, int log2_states, Work& w) {
  int64_t index = block();
  w.group = index % a.groups;
  index /= a.groups;
  w.segment = index % a.segments;
  index /= a.segments;
  w.image = index % a.images;
  w.batch = index / a.images;
  w.route = w.image - a.images;
  w.first_step = w.segment * a.segment;
  const int64_t steps = a.length - w.first_step, width = kWarp << a.log2_tiles;
  w.steps = static_cast<int32_t>(steps < a.segment ? steps : a.segment);
  w.channel = w.group * width;
  w.valid = static_cast<int32_t>(a.channels - w.channel < width ? a.channels - w.channel : width);
  const int64_t states = a.states - a.first_state;
  w.states = static_cast<int32_t>(states < 1 << log2_states ? states : 1 << log2_states);
}

// Likewise, for each route.
VMDDPM_DEVICE void next_route(const BackwardArguments& a, Work& w) {
  const int64_t route = w.route + a.images;
  const auto start = [&](const PairStream& s, int64_t outer, int64_t column) {
    return s.at.data + w.batch * s.at.batch + outer * s.at.route + column * s.at.column;
  };
  w.route = route;
  w.adds = a.add || route != w.image;
  w.x = start(a.x, route, w.channel);
  w.delta = start(a.delta, route, w.channel);
  w.dy = start(a.dy, route, w.channel);
  w.B = start(a.B, route, a.first_state);
  w.C = start(a.C, route, a.first_state);
  w.dx = start(a.dx, w.image, w.channel);
  w.ddelta = start(a.ddelta, route, w.channel);
  w.matrices = ((w.group * a.batch + w.batch) * a.routes + route) * a.length * a.states + a.first_state;
  w.checkpoints = ((w.batch * a.routes + route) * a.chunks + w.first_step / kGpuChunk) * a.piece;
  w.table = a.table ? a.table + route * a.length + w.first_step : nullptr;
}

// Starts copying where the steps of a chunk stand. Beyond the last step its pixel is repeated, so that what is loaded for
// them is there.
VMDDPM_DEVICE void fetch_pixels(const Work& w, int chunk, int32_t* pixels) {
  if (chunk >= 0 && thread() < kChunk) {
    const int step = chunk * kChunk + thread(), inside = step < w.steps ? step : w.steps - 1;
    int32_t* to = pixels + chunk % 2 * kChunk + thread();
    if (w.table) {
      copy_async<4>(to, w.table + inside, 4);
    } else {
      *to = static_cast<int32_t>(w.first_step) + inside;
    }
  }
  commit_copies();
}

// The states (N, D) before a chunk of the segment.
template <typename Acc>
VMDDPM_DEVICE const Acc* checkpoint(const BackwardArguments& a, const Work& w, int chunk) {
  return static_cast<const Acc*>(a.checkpoints) + w.checkpoints + chunk * a.piece;
}

// Where those of the segment lie in a tensor (B, K, segments, N, D): state n of channel d at offset + n * channels + d.
VMDDPM_DEVICE int64_t segment_states(const BackwardArguments& a, const Work& w) {
  return ((w.batch * a.routes + w.route) * a.segments + w.segment) * a.piece;
}

// A thread's S states, from `first` on of the launch's, to where a piece (N, D) lies.
template <typename Acc, int S>
VMDDPM_DEVICE void store_piece(const BackwardArguments& a, const Work& w, int column, int first, const Acc (&h)[S], Acc* to) {
  if (column >= w.valid) return;
  to += (a.first_state + first) * a.channels + w.channel + column;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) to[s * a.channels] = h[s];
  }
}

// The same of n neighbouring channels from there, zero where there is no such state or channel.
template <int n, int S, typename Acc>
VMDDPM_DEVICE void load_piece(const BackwardArguments& a, const Work& w, int column, int first, const Acc* from,
                              Acc (&h)[n * S]) {
  from += (a.first_state + first) * a.channels + w.channel + column;
#pragma unroll
  for (int s = 0; s < S; ++s, from += a.channels) {
#pragma unroll
    for (int j = 0; j < n; ++j) h[j * S + s] = column + j < w.valid && first + s < w.states ? from[j] : Acc(0);
  }
}

// To a tensor (B, K, D, N).
template <typename Acc, int S>
VMDDPM_DEVICE void store_states(const BackwardArguments& a, const Work& w, int column, int first, const Acc (&h)[S], Acc* to) {
  if (column >= w.valid) return;
  to += ((w.batch * a.routes + w.route) * a.channels + w.channel + column) * a.states + a.first_state + first;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) to[s] = h[s];
  }
}

// The S states a thread starts a segment from.
template <typename Acc, int S>
VMDDPM_DEVICE void load_start(const BackwardArguments& a, const Work& w, int column, int first, Acc (&h)[S]) {
  const Acc* start = static_cast<const Acc*>(a.start);
  if (a.start_by_segment) return load_piece<1, S>(a, w, column, first, start + segment_states(a, w), h);
  start += ((w.batch * a.routes + w.route) * a.channels + w.channel + column) * a.states + a.first_state + first;
#pragma unroll
  for (int s = 0; s < S; ++s) h[s] = a.start && column < w.valid && first + s < w.states ? start[s] : Acc(0);
}

// The rates of S states of a channel, zero (a decay of one) where there is no such state or channel.
template <typename Acc, int S>
VMDDPM_DEVICE void load_rates(const BackwardArguments& a, const Work& w, int column, int first, Acc (&rates)[S]) {
  const Acc* A = static_cast<const Acc*>(a.A) + (w.route * a.channels + w.channel + column) * a.states + a.first_state;
#pragma unroll
  for (int s = 0; s < S; ++s) rates[s] = column < w.valid && first + s < w.states ? rate(A[first + s]) : Acc(0);
}

// delta_bias and D of the block's channels, to shared memory; zero where there is none.
template <typename Acc>
VMDDPM_DEVICE void load_parameters(const BackwardArguments& a, const Work& w, Acc* bias, Acc* skip) {
  const int64_t row = w.route * a.channels + w.channel;
  for (int c = thread(); c < kWarp << a.log2_tiles; c += threads()) {
    bias[c] = a.delta_bias && c < w.valid ? static_cast<const Acc*>(a.delta_bias)[row + c] : Acc(0);
    skip[c] = a.D && a.first_state == 0 && c < w.valid ? static_cast<const Acc*>(a.D)[row + c] : Acc(0);
  }
}

// Two channels' elements as they were loaded; where they have two bytes and make a pair, both are in the first.
template <typename E>
struct RawPair {
  Raw<E> raw[2];
};

// Where a tensor has the channel that is `column` from a block's first.
template <bool kPairs>
VMDDPM_DEVICE char* lane_at(const PairStream& s, char* block, int column) {
  if constexpr (kPairs) return opaque(block + wide_product(column, static_cast<int32_t>(s.at.column)));  // of one element
  return opaque(block + column * s.at.column);
}

// A lane's two channels, the first at `lane`, of which `count` (1 or more) exist; else the first twice.
template <bool kPairs, typename E>
VMDDPM_DEVICE void fetch_pair(const PairStream& s, const char* lane, int32_t pixel, int count, RawPair<E>& pair) {
  const char* from = lane + wide_product(pixel, s.at.step);
  if constexpr (!kPairs) {
    pair.raw[0] = load_raw<E>(from);
    pair.raw[1] = load_raw<E>(from + (count > 1 ? s.at.column : 0));
  } else if constexpr (sizeof(E) == 2) {
    pair.raw[0] = *reinterpret_cast<const uint32_t*>(from);
  } else {
    load_row(reinterpret_cast<const E*>(from), pair.raw);
  }
}

template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void values_of(const RawPair<E>& pair, Acc (&values)[2]) {
  values[0] = widen_raw<E>(pair.raw[0]);
  if constexpr (kPairs && sizeof(E) == 2) {
    values[1] = widen_raw<E>(pair.raw[0] >> 16);
  } else {
    values[1] = widen_raw<E>(pair.raw[1]);
  }
}

template <bool kPairs, typename T, typename Acc>
VMDDPM_DEVICE void store_pair_as(const PairStream& s, char* to, int count, bool add, const Acc (&values)[2]) {
  if constexpr (kPairs) {
    T results[2];
    if (add) load_row(reinterpret_cast<const T*>(to), results);
#pragma unroll
    for (int j = 0; j < 2; ++j) narrow(add ? values[j] + static_cast<Acc>(widen(results[j])) : values[j], results[j]);
    store_row(reinterpret_cast<T*>(to), results);
  } else {
#pragma unroll
    for (int j = 0; j < 2; ++j, to += s.at.column) {
      if (j >= count) continue;
      T& target = *reinterpret_cast<T*>(to);
      narrow(add ? values[j] + static_cast<Acc>(widen(target)) : values[j], target);
    }
  }
}

// Two values, of which `count` exist, or adds them to what is there, which is then of the accumulation's type.
template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void store_pair(const PairStream& s, char* lane, int32_t pixel, int count, bool add, const Acc (&values)[2]) {
  char* to = lane + wide_product(pixel, s.at.step);
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!s.at.wide) return store_pair_as<kPairs, E>(s, to, count, false, values);
  }
  if (add) return store_pair_as<kPairs, Acc>(s, to, count, true, values);
  store_pair_as<kPairs, Acc>(s, to, count, false, values);
}

// The steps of a chunk, and where they stand.
struct ChunkSteps {
  const int32_t* pixels;  // in shared memory
  int32_t count;
};

VMDDPM_DEVICE ChunkSteps steps_of(const Work& w, int chunk, const int32_t* pixels) {
  const int left = w.steps - chunk * kChunk;
  return {pixels + chunk % 2 * kChunk, left < kChunk ? left : kChunk};
}

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
VMDDPM_DEVICE void decode_channels_as(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
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
VMDDPM_DEVICE void decode_by_steps(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
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
VMDDPM_DEVICE void decode_channels(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
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
VMDDPM_DEVICE void decode_matrices_as(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
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
VMDDPM_DEVICE void decode_matrices(const BackwardArguments& a, const Work& w, const ChunkSteps& steps,
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
