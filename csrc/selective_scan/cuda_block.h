// What the kernels of both directions share: their arguments, the layout of shared memory, and the pipeline that keeps
// tiles coming.
#pragma once
#include "../common/gpu_math.h"
#include "../common/gpu_tile.h"
#include "cuda.h"

namespace vmddpm {
namespace gpu {

constexpr int kPixelRing = 8;  // tiles of pixel numbers: of those in flight, and as far ahead again

// Byte offsets into a block's shared memory.
struct SharedLayout {
  int32_t work, pixels, raw, stage_bytes;                  // a stage is the raw tiles of one visit, in this order:
  int32_t raw_x, raw_delta, raw_B, raw_C, raw_dy;    // offsets into a stage
  int32_t x, delta, dy, B, C;                        // decoded tiles
  int32_t partial;                                   // what the slices add up to y, or to ddelta and ddrive
  int32_t bias, skip;                                // delta_bias and D of the block's channels
  int32_t history;                                   // backward: states at the start of every few steps of a chunk
  int32_t matrices;                                  // backward: dB and dC of a tile, from each warp of channels
  int32_t bytes;
};

struct ScanArguments {
  int64_t batch, routes, length, channels, states;
  int64_t route_begin, route_end;     // of this launch
  int64_t first_state;                // of this launch
  int64_t groups, segments, segment, chunks;
  int32_t log2_slices, log2_tiles;
  bool loops_routes, softplus;
  bool add;                           // results are added from the first route on
  Input x, delta, B, C;
  const void *A, *D, *delta_bias;
  const int32_t* table;
  const void* start;                  // states to start from: (B, K, D, N), or (B, K, segments, N, D); null is zero
  bool start_by_segment;
  void *segment_state, *segment_delta;
  Output y;
  void *last_state, *checkpoints;
  SharedLayout shared;
  // Backward.
  Input dy;
  bool has_dy;
  Output dx, ddelta;
  void *dB, *dC, *dA, *dD, *ddelta_bias, *dstart;
};

// A decoded tile of B or C has rows of as many states as a block can have.
constexpr int kMostSlices = 4;
template <int S>
constexpr int kRow = kMostSlices * S;

// A block's piece of the work. It lives in shared memory: every thread needs it, seldom, and a register each for its
// numbers would be missing where the recurrences run.
struct Work {
  int64_t batch, group, segment, channel;  // `channel` is the block's first
  int64_t first_step;
  int32_t steps;                           // of the segment
  int32_t valid;                           // channels of the block that exist
  int32_t states;                          // states that exist, of those of this launch
  // Of the route at hand; offsets in elements to the block's first channel, or state, in each tensor.
  int64_t route;
  int64_t x, delta, B, C, dy, y, dx, ddelta;
  const int32_t* table;                    // at the segment's first step
};

// For the first thread of a block.
VMDDPM_DEVICE void begin_block(const ScanArguments& a, int log2_states, Work& w) {
  int64_t index = block();
  w.group = index % a.groups;
  index /= a.groups;
  w.segment = index % a.segments;
  index /= a.segments;
  const int64_t routes = a.loops_routes ? 1 : a.route_end - a.route_begin;
  w.route = a.route_begin + index % routes;
  w.batch = index / routes;
  w.first_step = w.segment * a.segment;
  const int64_t steps = a.length - w.first_step, width = kWarp << a.log2_tiles;
  w.steps = static_cast<int32_t>(steps < a.segment ? steps : a.segment);
  w.channel = w.group * width;
  w.valid = static_cast<int32_t>(a.channels - w.channel < width ? a.channels - w.channel : width);
  const int64_t states = a.states - a.first_state;
  w.states = static_cast<int32_t>(states < 1 << log2_states ? states : 1 << log2_states);
}

// Likewise, for each route.
VMDDPM_DEVICE void begin_route(const ScanArguments& a, int64_t route, Work& w) {
  w.route = route;
  w.x = origin(a.x.view, w.batch, route, w.channel);
  w.delta = origin(a.delta.view, w.batch, route, w.channel);
  w.B = origin(a.B.view, w.batch, route, a.first_state);
  w.C = origin(a.C.view, w.batch, route, a.first_state);
  w.dy = origin(a.dy.view, w.batch, route, w.channel);
  w.y = origin(a.y.view, w.batch, route, w.channel);
  w.dx = origin(a.dx.view, w.batch, route, w.channel);
  w.ddelta = origin(a.ddelta.view, w.batch, route, w.channel);
  w.table = a.table ? a.table + route * a.length + w.first_step : nullptr;
}

// This thread's place in its block.
struct Place {
  int lane, slice, tile;
  int column;                         // its channel within the block
  VMDDPM_DEVICE explicit Place(const ScanArguments& a)
      : lane(thread() % kWarp),
        slice(thread() / kWarp & ((1 << a.log2_slices) - 1)),
        tile(thread() / kWarp >> a.log2_slices),
        column(tile * kWarp + lane) {}
};

// Which tile a visit of the pipeline fetches, and which of its tensors. Tile i has steps i kSteps ... of the segment.
struct Visit {
  int tile;
  bool x, B, C, dy;                   // delta always
};

// Fetches the tiles of a route's visits, kStages - 1 visits ahead of their use, and their pixel numbers as far again.
// `Visits` says what visit v is: Visit operator()(int v) const.
template <typename Visits>
struct Pipeline {
  const ScanArguments& a;
  const Work& w;
  Visits what;
  int visits, log2_states;

  // Before the first visit. Other threads' pixel numbers are in place when it returns, tiles are not.
  VMDDPM_DEVICE void start() const {
    for (int v = 0; v < kStages - 1; ++v) fetch_pixels(v);
    commit_copies();
    wait_copies<0>();
    barrier();
    for (int v = 0; v < kStages - 1; ++v) fetch(v);
  }

  // Returns when the tiles of the visit before the next kStages - 2 have arrived, and every thread of the block is done
  // with what it did before.
  VMDDPM_DEVICE void await() const {
    wait_copies<kStages - 2>();
    barrier();
  }

  // Starts the copies of visit v, whose stage must be free. Visits beyond the last are empty groups.
  VMDDPM_DEVICE void fetch(int v) const {
    if (v < visits) {
      const Visit visit = what(v);
      const TileSteps steps = steps_of(v);
      char* stage = stage_of(v);
      const int log2_width = 5 + a.log2_tiles;
      stage_tile(a.delta, w.delta, steps, w.valid, log2_width, stage + a.shared.raw_delta);
      if (visit.x) stage_tile(a.x, w.x, steps, w.valid, log2_width, stage + a.shared.raw_x);
      if (visit.B) stage_tile(a.B, w.B, steps, w.states, log2_states, stage + a.shared.raw_B);
      if (visit.C) stage_tile(a.C, w.C, steps, w.states, log2_states, stage + a.shared.raw_C);
      if (visit.dy) stage_tile(a.dy, w.dy, steps, w.valid, log2_width, stage + a.shared.raw_dy);
      fetch_pixels(v + kStages - 1);
    }
    commit_copies();
  }

  VMDDPM_DEVICE TileSteps steps_of(int v) const {
    const int first = what(v).tile * kSteps, left = w.steps - first;
    return {w.table ? pixels_of(v) : nullptr, w.first_step + first, left < kSteps ? left : kSteps};
  }

  VMDDPM_DEVICE char* stage_of(int v) const { return gpu::shared() + a.shared.raw + v % kStages * a.shared.stage_bytes; }

 private:
  VMDDPM_DEVICE int32_t* pixels_of(int v) const {
    return reinterpret_cast<int32_t*>(gpu::shared() + a.shared.pixels) + v % kPixelRing * kSteps;
  }

  VMDDPM_DEVICE void fetch_pixels(int v) const {
    if (!w.table || v >= visits) return;
    const int first = what(v).tile * kSteps;
    if (thread() < kSteps && first + thread() < w.steps) {
      copy_async<4>(pixels_of(v) + thread(), w.table + first + thread(), 4);
    }
  }
};

// Where the states of (batch, route, segment or chunk) lie in a tensor (B, K, pieces, N, D): state n of channel d at
// offset + n * channels + d.
VMDDPM_DEVICE int64_t piece_offset(const ScanArguments& a, const Work& w, int64_t piece, int64_t pieces) {
  return ((w.batch * a.routes + w.route) * pieces + piece) * a.states * a.channels;
}

// A thread's S states, from `first` on of the launch's, to a tensor (B, K, pieces, N, D).
template <typename Acc, int S>
VMDDPM_DEVICE void store_piece(const ScanArguments& a, const Work& w, int64_t piece, int64_t pieces, int column, int first,
                               const Acc (&h)[S], Acc* to) {
  if (column >= w.valid) return;
  to += piece_offset(a, w, piece, pieces) + (a.first_state + first) * a.channels + w.channel + column;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) to[s * a.channels] = h[s];
  }
}

// The same from there, zero where there is no such state or channel.
template <typename Acc, int S>
VMDDPM_DEVICE void load_piece(const ScanArguments& a, const Work& w, int64_t piece, int64_t pieces, int column, int first,
                              const Acc* from, Acc (&h)[S]) {
  from += piece_offset(a, w, piece, pieces) + (a.first_state + first) * a.channels + w.channel + column;
#pragma unroll
  for (int s = 0; s < S; ++s) h[s] = column < w.valid && first + s < w.states ? from[s * a.channels] : Acc(0);
}

// To a tensor (B, K, D, N).
template <typename Acc, int S>
VMDDPM_DEVICE void store_states(const ScanArguments& a, const Work& w, int column, int first, const Acc (&h)[S], Acc* to) {
  if (column >= w.valid) return;
  to += ((w.batch * a.routes + w.route) * a.channels + w.channel + column) * a.states + a.first_state + first;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (first + s < w.states) to[s] = h[s];
  }
}

// The S states a thread starts a segment from.
template <typename Acc, int S>
VMDDPM_DEVICE void load_start(const ScanArguments& a, const Work& w, int column, int first, Acc (&h)[S]) {
  const Acc* start = static_cast<const Acc*>(a.start);
  if (a.start_by_segment) return load_piece(a, w, w.segment, a.segments, column, first, start, h);
  start += ((w.batch * a.routes + w.route) * a.channels + w.channel + column) * a.states + a.first_state + first;
#pragma unroll
  for (int s = 0; s < S; ++s) h[s] = a.start && column < w.valid && first + s < w.states ? start[s] : Acc(0);
}

// The rates of S states of a channel, zero (a decay of one) where there is no such state or channel.
template <typename Acc, int S>
VMDDPM_DEVICE void load_rates(const ScanArguments& a, const Work& w, int column, int first, Acc (&rates)[S]) {
  const Acc* A = static_cast<const Acc*>(a.A) + (w.route * a.channels + w.channel + column) * a.states + a.first_state;
#pragma unroll
  for (int s = 0; s < S; ++s) rates[s] = column < w.valid && first + s < w.states ? rate(A[first + s]) : Acc(0);
}

// delta_bias and D of the block's channels, to shared memory; zero where there is none.
template <typename Acc>
VMDDPM_DEVICE void load_parameters(const ScanArguments& a, const Work& w, Acc* bias, Acc* skip) {
  const int64_t row = w.route * a.channels + w.channel;
  for (int c = thread(); c < kWarp << a.log2_tiles; c += threads()) {
    bias[c] = a.delta_bias && c < w.valid ? static_cast<const Acc*>(a.delta_bias)[row + c] : Acc(0);
    skip[c] = a.D && a.first_state == 0 && c < w.valid ? static_cast<const Acc*>(a.D)[row + c] : Acc(0);
  }
}

}  // namespace gpu
}  // namespace vmddpm
