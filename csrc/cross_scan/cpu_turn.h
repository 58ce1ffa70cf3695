// Transposes matrices by squares that fit into the registers.
#pragma once
#include "cpu_lanes.h"

namespace {

// A second, reversed destination of a transposed matrix: place[-i] = to[i]. Reading the result back instead would stall
// on stores of other sizes.
template <typename T>
struct Mirror {
  T* place;
  template <int N>
  VMDDPM_INLINE void store(int64_t i, Lanes<T, N> lanes) const {
    store_as(place - i - (N - 1), reversed_lanes(lanes));
  }
  VMDDPM_INLINE void store(int64_t i, T value) const { place[-i] = value; }
};

struct NoMirror {
  template <int N, typename V>
  VMDDPM_INLINE void store(int64_t, V) const {}
  template <typename T>
  VMDDPM_INLINE void store(int64_t, T) const {}
};

// to[column * to_pitch + row] = from[row * from_pitch + column]; pitches may be negative. Prefetches `prefetch_offset`
// values ahead of its reads, unless that is 0.
template <typename T, typename Second = NoMirror>
VMDDPM_NOINLINE void turn(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch,
                          int64_t prefetch_offset = 0, Second mirror = {}) {
  with_side<T>(minimum(rows, columns), [&](auto side) {
    constexpr int N = decltype(side)::value;
    if constexpr (N == 1) {
      for (int64_t row = 0; row < rows; ++row) {
        const T* const values = from + row * from_pitch;
        for (int64_t column = 0; column < columns; ++column) {
          to[column * to_pitch + row] = values[column];
          mirror.store(column * to_pitch + row, values[column]);
        }
      }
    } else {
      for_each_start(rows, N, [&](int64_t row) {
        for_each_start(columns, N, [&](int64_t column) {
          Lanes<T, N> square[N];
          VMDDPM_UNROLL
          for (int i = 0; i < N; ++i) square[i] = load_as<Lanes<T, N>>(from + (row + i) * from_pitch + column);
          turn_square<N>(square);
          if (prefetch_offset != 0) {
            VMDDPM_UNROLL
            for (int i = 0; i < N; ++i) prefetch_near(from + (row + i) * from_pitch + column + prefetch_offset);
          }
          VMDDPM_UNROLL
          for (int i = 0; i < N; ++i) {
            store_as(to + (column + i) * to_pitch + row, square[i]);
            mirror.template store<N>((column + i) * to_pitch + row, square[i]);
          }
        });
      });
    }
  });
}

}  // namespace
