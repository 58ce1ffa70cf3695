// Sequences with contiguous steps: a channel is a plane of the image and a run of each sequence.
#pragma once
#include "cpu_lines.h"
#include "cpu_tasks.h"
#include "cpu_turn.h"

namespace {

constexpr int64_t kStripBytes = 16 << 10;  // fits into the L1 cache with inputs and outputs

// The number of strips in which the columns of a plane are transposed.
template <typename T>
int64_t strips_of(int64_t height, int64_t width) {
  const int64_t columns = maximum(kSide<T>, kStripBytes / (height * static_cast<int64_t>(sizeof(T))));
  return (width + columns - 1) / columns;
}

// to[step] = the pixel that a walk along columns visits at that step; a reversed walk reverses both rows and columns.
// `backwards`, if not null, receives the sequence of the reversed walk.
template <typename T>
void turn_plane(const T* plane, const Walk& walk, T* to, int64_t prefetch_offset, T* backwards = nullptr) {
  const int64_t height = walk.height, width = walk.width, sign = walk.reversed ? -1 : 1;
  const int64_t next = walk.from_right != walk.reversed ? -height : height;
  const T* const from = plane + (sign < 0 ? (height - 1) * width : 0);
  const int64_t start = next < 0 ? (width - 1) * height : 0;
  if (!backwards) return turn(from, sign * width, height, width, to + start, next, prefetch_offset);
  const Mirror<T> mirror{backwards + height * width - 1 - start};
  turn(from, sign * width, height, width, to + start, next, prefetch_offset, mirror);
}

// Transposes strips of columns. A strip is a piece of each sequence along columns, so it is transposed once and can be
// written past the cache.
template <typename T>
void turn_strips(const T* plane, const Walks& walks, int64_t first, int64_t end, T* to, int64_t route_stride,
                 bool past_cache, int64_t prefetch_offset, T* strip) {
  const int64_t k = walks[first].columns ? first : first + 1;  // if any walk is along columns, every second one is
  const int64_t height = walks[k].height, width = walks[k].width, strips = strips_of<T>(height, width);
  for (int64_t index = 0; index < strips; ++index) {
    const Part part(width, strips, index);
    const int64_t count = part.count();
    if (walks[k].from_right) {
      turn(plane + width - part.end, width, height, count, strip + (count - 1) * height, -height, prefetch_offset);
    } else {
      turn(plane + part.first, width, height, count, strip, height, prefetch_offset);
    }
    for (int64_t route = k; route < end; route += 2) {
      const bool reversed = walks[route].reversed;
      T* const sequence = to + (route - first) * route_stride;
      const int64_t column = reversed ? width - part.end : part.first;
      copy_run(sequence + column * height, strip, count * height, reversed, past_cache);
    }
  }
}

// Sequence k - first of `to` = the plane in the order of walk k, for first <= k < end. Prefetches the plane
// `prefetch_offset` after this one.
template <typename T>
void walk_plane(const T* plane, const Walks& walks, int64_t first, int64_t end, T* to, int64_t route_stride,
                bool past_cache, int64_t prefetch_offset, T* strip) {
  const bool alone = end - first == 1;
  int64_t columns = end;  // the first walk along columns; the second one is its reverse
  for (int64_t k = end - 1; k >= first; --k) {
    const Walk walk = walks[k];
    if (walk.columns) {
      columns = k;
    } else {
      copy_run(to + (k - first) * route_stride, plane, walks.length, walk.reversed, past_cache);
    }
  }
  if (columns == end) return;
  if (past_cache) {
    return turn_strips(plane, walks, first, end, to, route_stride, past_cache, alone ? prefetch_offset : 0, strip);
  }
  T* const sequence = to + (columns - first) * route_stride;
  T* const backwards = columns + 2 < end ? sequence + 2 * route_stride : nullptr;
  turn_plane(plane, walks[columns], sequence, alone ? prefetch_offset : 0, backwards);
}

// Sums the N x N square of pixels at (y, x) over the walks, in order.
template <typename Acc, int N, typename T>
VMDDPM_INLINE void sum_square(const T* from, int64_t route_stride, const Walks& walks, int64_t routes, int64_t y,
                              int64_t x, T* to, int64_t pitch, int64_t prefetch_offset) {
  using V = Lanes<Acc, N>;
  V sum[N];
  const int64_t height = walks.height, width = walks.width, length = walks.length;
  for (int64_t k = 0; k < routes; ++k) {
    const Walk walk = walks[k];
    const T* const sequence = from + k * route_stride;
    V square[N];
    if (walk.columns) {
      // Register j holds column x + j from row y on, upside down for a reversed walk.
      const int64_t first = (walk.from_right ? width - 1 - x : x) * height + y;
      const int64_t next = walk.from_right != walk.reversed ? -height : height;
      const T* const start = sequence + (walk.reversed ? length - N - first : first);
      VMDDPM_UNROLL
      for (int j = 0; j < N; ++j) {
        prefetch_near(start + j * next + prefetch_offset);
        square[j] = widen_lanes<N>(start + j * next);
      }
      turn_square<N>(square);
      if (walk.reversed) {
        VMDDPM_UNROLL
        for (int i = 0; i < N / 2; ++i) {
          const V other = square[i];
          square[i] = square[N - 1 - i];
          square[N - 1 - i] = other;
        }
      }
    } else if (walk.reversed) {
      const T* const start = sequence + length - N - (y * width + x);
      VMDDPM_UNROLL
      for (int i = 0; i < N; ++i) {
        prefetch_near(start - i * width + prefetch_offset);
        square[i] = reversed_lanes(widen_lanes<N>(start - i * width));
      }
    } else {
      const T* const start = sequence + y * width + x;
      VMDDPM_UNROLL
      for (int i = 0; i < N; ++i) {
        prefetch_near(start + i * width + prefetch_offset);
        square[i] = widen_lanes<N>(start + i * width);
      }
    }
    VMDDPM_UNROLL
    for (int i = 0; i < N; ++i) sum[i] = k == 0 ? square[i] : sum[i] + square[i];
  }
  VMDDPM_UNROLL
  for (int i = 0; i < N; ++i) narrow_lanes<N>(to + i * pitch, sum[i]);
}

// Sums in strips of rows; each strip is written as one run.
template <typename Acc, typename T>
void sum_along_columns(const T* from, int64_t route_stride, const Walks& walks, int64_t routes, T* plane,
                       bool past_cache, int64_t prefetch_offset, T* strip) {
  const int64_t height = walks.height, width = walks.width;
  with_side<Acc>(minimum(height, width), [&](auto side) {
    constexpr int N = decltype(side)::value;
    int64_t written = 0;
    for_each_start(height, N, [&](int64_t y) {
      for_each_start(width, N, [&](int64_t x) {
        sum_square<Acc, N>(from, route_stride, walks, routes, y, x, strip + x, width, prefetch_offset);
      });
      const auto* const rows = reinterpret_cast<const Bits<T>*>(strip + (written - y) * width);
      copy_run(reinterpret_cast<Bits<T>*>(plane + written * width), rows, (y + N - written) * width, false, past_cache);
      written = y + N;
    });
  });
}

// plane[pixel] = the sum of the sequences at the steps that visit this pixel.
template <typename Acc, typename T>
void sum_plane(const T* from, int64_t route_stride, const Walks& walks, int64_t routes, T* plane, bool past_cache,
               int64_t prefetch_offset, T* strip) {
  bool columns = false;
  for (int64_t k = 0; k < routes; ++k) columns = columns || walks[k].columns;
  if (columns)
    return sum_along_columns<Acc>(from, route_stride, walks, routes, plane, past_cache, prefetch_offset, strip);
  Run<T> runs[4];
  for (int64_t k = 0; k < routes; ++k) runs[k] = {from + k * route_stride, walks[k].reversed};
  sum_runs<Acc>(runs, routes, walks.length, plane);
}

}  // namespace
