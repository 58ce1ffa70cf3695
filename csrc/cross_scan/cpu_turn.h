// Matrices transposed in squares that the registers hold.
#pragma once
#include "cpu_lanes.h"

namespace {

// to[column * to_pitch + row] = from[row * from_pitch + column]; pitches may be negative. What lies `ahead` of the
// values that are read is asked for, if it is not 0.
template <typename T>
VMDDPM_NOINLINE void turn(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch,
                          int64_t ahead = 0) {
  with_side<T>(smaller(rows, columns), [&](auto side) {
    constexpr int N = decltype(side)::value;
    if constexpr (N == 1) {
      for (int64_t row = 0; row < rows; ++row) {
        const T* const values = from + row * from_pitch;
        for (int64_t column = 0; column < columns; ++column) to[column * to_pitch + row] = values[column];
      }
    } else {
      for_each_start(rows, N, [&](int64_t row) {
        for_each_start(columns, N, [&](int64_t column) {
          Lanes<T, N> square[N];
          VMDDPM_UNROLL
          for (int i = 0; i < N; ++i) square[i] = load_as<Lanes<T, N>>(from + (row + i) * from_pitch + column);
          turn_square<N>(square);
          if (ahead != 0) {
            VMDDPM_UNROLL
            for (int i = 0; i < N; ++i) prefetch_near(from + (row + i) * from_pitch + column + ahead);
          }
          VMDDPM_UNROLL
          for (int i = 0; i < N; ++i) store_as(to + (column + i) * to_pitch + row, square[i]);
        });
      });
    }
  });
}

}  // namespace
