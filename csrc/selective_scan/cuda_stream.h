// A block's shared memory while it walks a segment: the pixels of its steps, and B and C of a tile of steps, which all
// lanes need. Each lane reads everything else for itself (common/gpu_stream.h).
#pragma once
#include "../common/gpu_math.h"
#include "../common/gpu_stream.h"
#include "cuda.h"

namespace vmddpm {
namespace gpu {

template <typename E>
using Accumulate = std::conditional_t<sizeof(E) == 8, double, float>;

// A block's piece of the work. Blocks of a launch are numbered by group (fastest), segment, route and image.
struct alignas(16) Piece {
  int32_t batch, route, segment, group;
};

VMDDPM_DEVICE Piece piece_of(uint32_t block, int32_t groups, int32_t segments, int32_t routes) {
  Piece p;
  p.group = static_cast<int32_t>(block % static_cast<uint32_t>(groups));
  block /= static_cast<uint32_t>(groups);
  p.segment = static_cast<int32_t>(block % static_cast<uint32_t>(segments));
  block /= static_cast<uint32_t>(segments);
  p.route = static_cast<int32_t>(block % static_cast<uint32_t>(routes));
  p.batch = static_cast<int32_t>(block / static_cast<uint32_t>(routes));
  return p;
}

// A ring buffer of the pixels of four tiles of steps, the current and the next among them. Beyond the last step its
// pixel is repeated, so that padding loads valid memory.
template <int kTileSteps>
struct Pixels {
  static constexpr uint32_t kCount = 4 * kTileSteps;
  int32_t* ring;         // in shared memory
  const int32_t* table;  // at the segment's first step, or null
  int32_t first, steps;  // first step and length of the segment
  int32_t fetched = 0;

  // Load and store are separate, so that other work covers the load's latency.
  VMDDPM_DEVICE void fetch(int tile) {
    if (thread() >= kTileSteps) return;
    const int step = tile * kTileSteps + thread(), inside = step < steps ? step : steps - 1;
    fetched = table ? table[inside] : first + inside;
  }
  VMDDPM_DEVICE void store(int tile) const {
    if (thread() < kTileSteps) ring[static_cast<uint32_t>(tile * kTileSteps + thread()) % kCount] = fetched;
  }
  // The pixel of a step of the segment; for the first step of a group, the whole group's pixels.
  VMDDPM_DEVICE const int32_t* at(int step) const { return ring + static_cast<uint32_t>(step) % kCount; }
};

// B and C of a tile of steps, for kStates states of a block of at least kThreads threads: rows [step][state] in shared
// memory, of the accumulation's type, zero beyond the last step and state. A thread loads elements of one state.
template <typename E, int kStates, int kTileSteps, int kThreads, bool kC>
struct Matrices {
  using Acc = Accumulate<E>;
  static constexpr int kSweeps = (kTileSteps * kStates + kThreads - 1) / kThreads;
  const char *B, *C;
  int32_t row, rows, state;
  bool inside;
  Raw<E> b[kSweeps], c[kSweeps];

  // `states`: how many states exist from `first_state` on.
  VMDDPM_DEVICE Matrices(const Stream& B_stream, const Stream& C_stream, const Piece& piece, int first_state, int states)
      : row(static_cast<uint32_t>(thread()) / kStates),
        rows(static_cast<uint32_t>(threads()) / kStates),
        state(static_cast<uint32_t>(thread()) % kStates), inside(state < states) {
    const int column = first_state + (inside ? state : 0);
    B = lane_of(B_stream, piece.batch, piece.route, column);
    C = kC ? lane_of(C_stream, piece.batch, piece.route, column) : nullptr;
  }

  VMDDPM_DEVICE void fetch(const Stream& B_stream, const Stream& C_stream, const Pixels<kTileSteps>& pixels, int tile) {
    if constexpr (sizeof(E) == 2) {
      if (B_stream.wide) return fetch_as<Acc>(B_stream, C_stream, pixels, tile);
    }
    fetch_as<E>(B_stream, C_stream, pixels, tile);
  }

  // `left`: steps remaining from the tile's first on.
  VMDDPM_DEVICE void store(const Stream& B_stream, Acc* B_tile, Acc* C_tile, int left) const {
    if constexpr (sizeof(E) == 2) {
      if (B_stream.wide) return store_as<Acc>(B_tile, C_tile, left);
    }
    store_as<E>(B_tile, C_tile, left);
  }

 private:
  template <typename T>
  VMDDPM_DEVICE void fetch_as(const Stream& B_stream, const Stream& C_stream, const Pixels<kTileSteps>& pixels, int tile) {
#pragma unroll
    for (int k = 0; k < kSweeps; ++k) {
      const int t = row + k * rows;
      if (t >= kTileSteps) break;
      const int32_t pixel = *pixels.at(tile * kTileSteps + t);
      b[k] = as_raw<T>(B + wide_product(pixel, B_stream.step));
      if constexpr (kC) c[k] = as_raw<T>(C + wide_product(pixel, C_stream.step));
    }
  }

  template <typename T>
  VMDDPM_DEVICE void store_as(Acc* B_tile, Acc* C_tile, int left) const {
#pragma unroll
    for (int k = 0; k < kSweeps; ++k) {
      const int t = row + k * rows;
      if (t >= kTileSteps) break;
      const bool there = inside && t < left;
      B_tile[t * kStates + state] = there ? value<T>(b[k]) : Acc(0);
      if constexpr (kC) C_tile[t * kStates + state] = there ? value<T>(c[k]) : Acc(0);
    }
  }

  // A word holds an element of either type.
  template <typename T>
  VMDDPM_DEVICE static Raw<E> as_raw(const char* from) {
    if constexpr (sizeof(T) == 2 || sizeof(E) != 2) return load_raw<E>(from);
    return *reinterpret_cast<const Raw<E>*>(from);
  }
  template <typename T>
  VMDDPM_DEVICE static Acc value(Raw<E> raw) {
    if constexpr (sizeof(T) == sizeof(E)) return widen_raw<E>(raw);
    float wide;
    memcpy(&wide, &raw, sizeof wide);
    return wide;
  }
};

// Loads a lane's S neighbouring states, of which `count` exist, from (..., N), or from (..., N, D) with the stride D.
template <typename Acc, int S>
VMDDPM_DEVICE void load_states(const Acc* from, int64_t stride, int count, Acc (&h)[S]) {
  constexpr int kBytes = sizeof(Acc) * S < 16 ? sizeof(Acc) * S : 16;
  if (stride == 1 && count == S && reinterpret_cast<uintptr_t>(from) % kBytes == 0) return load_row(from, h);
#pragma unroll
  for (int s = 0; s < S; ++s) h[s] = s < count ? from[s * stride] : Acc(0);
}

template <typename Acc, int S>
VMDDPM_DEVICE void store_states(const Acc (&h)[S], int count, int64_t stride, Acc* to) {
  if (count == S) {
#pragma unroll
    for (int s = 0; s < S; ++s) to[s * stride] = h[s];
    return;
  }
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (s < count) to[s * stride] = h[s];
  }
}

}  // namespace gpu
}  // namespace vmddpm
