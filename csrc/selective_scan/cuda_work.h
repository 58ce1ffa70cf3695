// A block's piece of the adjoint scan: its arguments, its shared memory, and its states and parameters.
//
// A lane has two neighbouring channels, so a unit of 16 lanes covers a tile of 32. The two units of a warp are either
// two slices of the states of the same channels, or two tiles.
#pragma once
#include "../common/gpu_math.h"
#include "cuda.h"
#include "cuda_pairs.h"

namespace vmddpm {
namespace gpu {

constexpr int kChunk = static_cast<int>(kGpuChunk);
constexpr int kUnit = kWarp / 2;
constexpr int kPitchOfPairs = kUnit + 1;              // fewer bank conflicts for lanes along steps
constexpr int kTilePairs = kChunk * kPitchOfPairs;
constexpr int kStrip = 8;                             // steps between sums over slices
constexpr int kMostUnits = 8;                         // the most slices of a channel's states
constexpr int kMatrixPitch = kChunk + 1;              // steps from one slice's B and C to the next

// Steps for which the backward holds S states of two channels in registers.
VMDDPM_CONSTANT int sub_steps(int S, bool wide, bool zoh) { return 8 / S / (wide ? 2 : 1) / (zoh ? 2 : 1); }

// The same for the scan of a single state.
VMDDPM_CONSTANT int alone_steps(bool wide, bool zoh) { return 4 / (wide ? 2 : 1) / (zoh ? 2 : 1); }

// The inputs of a step of two channels: delta of each, then delta x of each.
template <typename Acc>
using Drive = Pack<Acc, 4>;

// Byte offsets into a block's shared memory.
struct ChunkLayout {
  int32_t work, pixels;   // pixels of two chunks
  int32_t drive, dy;      // Drive and Pair [tile][step][lane]
  int32_t matrices;       // B, then C: Pack<Acc, 2 S> [slice][step]
  int32_t history;        // states [sub-step][thread]
  int32_t partial;        // Drive [tile][slice][step of a strip][lane]: each slice's ddelta and ddrive
  int32_t sums;           // dB and dC [tile][which][step of a strip][state]
  int32_t totals;         // Drive [thread]: the gradients of D and of delta_bias over the chunks so far
  int32_t bias, skip;     // delta_bias and D of the block's channels
  int32_t bytes;
};

struct BackwardArguments {
  int64_t batch, routes, length, channels, states;
  int64_t first_state;                // of this launch
  int64_t groups, segments, segment, chunks;
  int64_t piece;                      // states of all channels: the size of a checkpoint and of a segment's states
  int64_t walks;                      // a block walks every walks-th route and sums their dx
  int64_t images;                     // images of dx; walk w goes to image w % images
  int64_t matrices;                   // partial dB and dC; group g goes to g % matrices
  int32_t log2_slices, tiles;
  bool softplus, has_dy;
  bool meet;                          // atomics add two routes to an image
  Put put;                            // how ddelta, and dx of a block's first route, are stored
  bool pairs;                         // x, delta, dy, dx and ddelta are all read and written in pairs
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

// A block's current work, in shared memory: threads rarely read it, and the recurrences need the registers.
struct BlockWork {
  int64_t batch, walk, group, segment, channel;  // `channel` is the block's first
  int64_t first_step;
  int32_t steps;                           // of the segment
  int32_t valid;                           // channels of the block that exist
  int32_t states;                          // states of this launch that exist
  // For the current route; addresses are those of the block's first channel or state.
  int64_t route;                           // before the first route: that minus a.walks
  Put put;                                 // how dx is stored
  char *x, *delta, *dy, *B, *C, *dx, *ddelta;
  int64_t matrices;                        // offset of the rows of dB and dC, in elements
  int64_t checkpoints;                     // offset of the segment's checkpoints, in elements
  const int32_t* table;                    // at the segment's first step
};

// Run by the first thread of a block.
VMDDPM_DEVICE void begin_block(const BackwardArguments& a, int log2_states, BlockWork& w) {
  int64_t index = block();
  w.group = index % a.groups;
  index /= a.groups;
  w.segment = index % a.segments;
  index /= a.segments;
  w.walk = index % a.walks;
  w.batch = index / a.walks;
  w.route = w.walk - a.walks;
  w.first_step = w.segment * a.segment;
  const int64_t steps = a.length - w.first_step, width = kWarp * a.tiles;
  w.steps = static_cast<int32_t>(steps < a.segment ? steps : a.segment);
  w.channel = w.group * width;
  w.valid = static_cast<int32_t>(a.channels - w.channel < width ? a.channels - w.channel : width);
  const int64_t states = a.states - a.first_state;
  w.states = static_cast<int32_t>(states < 1 << log2_states ? states : 1 << log2_states);
}

// Run by the first thread of a block before each route.
VMDDPM_DEVICE void next_route(const BackwardArguments& a, BlockWork& w) {
  const int64_t route = w.route + a.walks;
  const auto start = [&](const PairStream& s, int64_t outer, int64_t column) {
    return s.at.data + w.batch * s.at.batch + outer * s.at.route + column * s.at.column;
  };
  w.route = route;
  w.put = a.meet || route != w.walk ? Put::add : a.put;
  w.x = start(a.x, route, w.channel);
  w.delta = start(a.delta, route, w.channel);
  w.dy = start(a.dy, route, w.channel);
  w.B = start(a.B, route, a.first_state);
  w.C = start(a.C, route, a.first_state);
  w.dx = start(a.dx, w.walk % a.images, w.channel);
  w.ddelta = start(a.ddelta, route, w.channel);
  w.matrices = ((w.group % a.matrices * a.batch + w.batch) * a.routes + route) * a.length * a.states + a.first_state;
  w.checkpoints = ((w.batch * a.routes + route) * a.chunks + w.first_step / kGpuChunk) * a.piece;
  w.table = a.table ? a.table + route * a.length + w.first_step : nullptr;
}

// Starts copying the pixels of a chunk's steps. Beyond the last step its pixel is repeated, so that padding loads valid
// memory.
VMDDPM_DEVICE void fetch_pixels(const BlockWork& w, int chunk, int32_t* pixels) {
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
VMDDPM_DEVICE const Acc* checkpoint(const BackwardArguments& a, const BlockWork& w, int chunk) {
  return static_cast<const Acc*>(a.checkpoints) + w.checkpoints + chunk * a.piece;
}

// The offset of the segment's states in a tensor (B, K, segments, N, D); state n of channel d adds n * channels + d.
VMDDPM_DEVICE int64_t segment_states(const BackwardArguments& a, const BlockWork& w) {
  return ((w.batch * a.routes + w.route) * a.segments + w.segment) * a.piece;
}

// Stores a thread's S states, from the launch's state `first` on, in a piece (N, D).
template <typename Acc, int S>
VMDDPM_DEVICE void store_piece(const BackwardArguments& a, const BlockWork& w, int column, int first, const Acc (&h)[S], Acc* to) {
  if (column >= w.valid) return;
  to += (a.first_state + first) * a.channels + w.channel + column;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) to[s * a.channels] = h[s];
  }
}

// Loads S states of n neighbouring channels from a piece (N, D), with zero for states and channels that do not exist.
template <int n, int S, typename Acc>
VMDDPM_DEVICE void load_piece(const BackwardArguments& a, const BlockWork& w, int column, int first, const Acc* from,
                              Acc (&h)[n * S]) {
  from += (a.first_state + first) * a.channels + w.channel + column;
#pragma unroll
  for (int s = 0; s < S; ++s, from += a.channels) {
#pragma unroll
    for (int j = 0; j < n; ++j) h[j * S + s] = column + j < w.valid && first + s < w.states ? from[j] : Acc(0);
  }
}

// Stores a thread's S states in a tensor (B, K, D, N).
template <typename Acc, int S>
VMDDPM_DEVICE void store_states(const BackwardArguments& a, const BlockWork& w, int column, int first, const Acc (&h)[S], Acc* to) {
  if (column >= w.valid) return;
  to += ((w.batch * a.routes + w.route) * a.channels + w.channel + column) * a.states + a.first_state + first;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) to[s] = h[s];
  }
}

// Loads the S state gradients from which a thread starts a segment.
template <typename Acc, int S>
VMDDPM_DEVICE void load_start(const BackwardArguments& a, const BlockWork& w, int column, int first, Acc (&h)[S]) {
  const Acc* start = static_cast<const Acc*>(a.start);
  if (a.start_by_segment) return load_piece<1, S>(a, w, column, first, start + segment_states(a, w), h);
#pragma unroll
  for (int s = 0; s < S; ++s) h[s] = Acc(0);
  if (!a.start || column >= w.valid) return;
  start += ((w.batch * a.routes + w.route) * a.channels + w.channel + column) * a.states + a.first_state + first;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) h[s] = start[s];
  }
}

// Loads the rates of S states of a channel, zero (a decay of one) for states and channels that do not exist.
template <typename Acc, int S>
VMDDPM_DEVICE void load_rates(const BackwardArguments& a, const BlockWork& w, int column, int first, Acc (&rates)[S]) {
  const Acc* A = static_cast<const Acc*>(a.A) + (w.route * a.channels + w.channel + column) * a.states + a.first_state;
#pragma unroll
  for (int s = 0; s < S; ++s) rates[s] = column < w.valid && first + s < w.states ? rate(A[first + s]) : Acc(0);
}

// Loads delta_bias and D of the block's channels into shared memory, with zero where there is none.
template <typename Acc>
VMDDPM_DEVICE void load_parameters(const BackwardArguments& a, const BlockWork& w, Acc* bias, Acc* skip) {
  const int64_t row = w.route * a.channels + w.channel;
  for (int c = thread(); c < kWarp * a.tiles; c += threads()) {
    bias[c] = a.delta_bias && c < w.valid ? static_cast<const Acc*>(a.delta_bias)[row + c] : Acc(0);
    skip[c] = a.D && a.first_state == 0 && c < w.valid ? static_cast<const Acc*>(a.D)[row + c] : Acc(0);
  }
}

// The steps of a chunk and their pixels.
struct ChunkSteps {
  const int32_t* pixels;  // in shared memory
  int32_t count;
};

VMDDPM_DEVICE ChunkSteps steps_of(const BlockWork& w, int chunk, const int32_t* pixels) {
  const int left = w.steps - chunk * kChunk;
  return {pixels + chunk % 2 * kChunk, left < kChunk ? left : kChunk};
}

}  // namespace gpu
}  // namespace vmddpm
