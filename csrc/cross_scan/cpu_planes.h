// Sequences whose steps lie side by side: a channel is a plane of the image and a run of each sequence.
#pragma once
#include "cpu_lines.h"
#include "cpu_tasks.h"
#include "cpu_turn.h"

namespace {

constexpr int64_t kStripBytes = 16 << 10;  // stays in the first-level cache beside what is read and written

// Columns of a strip, transposed together.
template <typename T>
int64_t strips_of(int64_t height, int64_t width) {
  const int64_t columns = larger(kSide<T>, kStripBytes / (height * static_cast<int64_t>(sizeof(T))));
  return (width + columns - 1) / columns;
}

template <typename T>
void gather(const T* from, const int32_t* places, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[places[i]];
}

constexpr int64_t kGathered = 512;  // values at a time

// sequence k of `to` = the plane as walk k visits it, for first <= k < end.
template <typename T>
void walk_plane(const T* plane, const Walks& walks, int64_t first, int64_t end, T* to, int64_t route_stride,
                bool past_cache) {
  const int64_t length = walks.length;
  Walk columns{};
  for (int64_t k = first; k < end; ++k) {
    const Walk walk = walks[k];
    T* const sequence = to + k * route_stride;
    if (walk.pixels && past_cache) {
      T some[kGathered];
      for (int64_t step = 0; step < length; step += kGathered) {
        const int64_t steps = smaller(kGathered, length - step);
        gather(plane, walk.pixels + step, steps, some);
        copy_run(sequence + step, some, steps, false, true);
      }
    } else if (walk.pixels) {
      gather(plane, walk.pixels, length, sequence);
    } else if (walk.columns) {
      columns = walk;
    } else {
      copy_run(sequence, plane, length, walk.reversed, past_cache);
    }
  }
  if (!columns.columns) return;
  // A strip of columns at a time is a piece of every sequence along them.
  const int64_t height = columns.height, width = columns.width, strips = strips_of<T>(height, width);
  T* const strip = strip_scratch.reserve<T>((width + strips - 1) / strips * height);
  for (int64_t index = 0; index < strips; ++index) {
    const Part part(width, strips, index);
    const int64_t count = part.count();
    if (columns.from_right) {
      turn(plane + width - part.end, width, height, count, strip + (count - 1) * height, -height);
    } else {
      turn(plane + part.first, width, height, count, strip, height);
    }
    for (int64_t k = first; k < end; ++k) {
      const Walk walk = walks[k];
      if (!walk.columns) continue;
      const int64_t step = walk.reversed ? length - part.end * height : part.first * height;
      copy_run(to + k * route_stride + step, strip, count * height, walk.reversed, past_cache);
    }
  }
}

// An N x N square of pixels from (y, x) on, summed over the walks in their order.
template <typename Acc, int N, typename T>
VMDDPM_INLINE void sum_square(const T* from, int64_t route_stride, const Walks& walks, int64_t routes, int64_t y, int64_t x,
                              T* to, int64_t pitch) {
  using V = Lanes<Acc, N>;
  V sum[N];
  const int64_t height = walks.height, width = walks.width, length = walks.length;
  for (int64_t k = 0; k < routes; ++k) {
    const Walk walk = walks[k];
    const T* const sequence = from + k * route_stride;
    V square[N];
    if (walk.columns) {
      // Register j is column x + j, from y on; of a reversed walk it holds the column upside down.
      const int64_t first = (walk.from_right ? width - 1 - x : x) * height + y, next = walk.from_right ? -height : height;
      const T* const start = sequence + (walk.reversed ? length - N - first : first);
      const int64_t pitch_here = walk.reversed ? -next : next;
      VMDDPM_UNROLL
      for (int j = 0; j < N; ++j) square[j] = widen_lanes<N>(start + j * pitch_here);
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
      for (int i = 0; i < N; ++i) square[i] = reversed_lanes(widen_lanes<N>(start - i * width));
    } else {
      const T* const start = sequence + y * width + x;
      VMDDPM_UNROLL
      for (int i = 0; i < N; ++i) square[i] = widen_lanes<N>(start + i * width);
    }
    VMDDPM_UNROLL
    for (int i = 0; i < N; ++i) sum[i] = k == 0 ? square[i] : sum[i] + square[i];
  }
  VMDDPM_UNROLL
  for (int i = 0; i < N; ++i) narrow_lanes<N>(to + i * pitch, sum[i]);
}

template <typename Acc, typename T>
void sum_along_columns(const T* from, int64_t route_stride, const Walks& walks, int64_t routes, T* plane) {
  const int64_t height = walks.height, width = walks.width;
  with_side<Acc>(smaller(height, width), [&](auto side) {
    constexpr int N = decltype(side)::value;
    for_each_start(height, N, [&](int64_t y) {
      for_each_start(width, N, [&](int64_t x) {
        sum_square<Acc, N>(from, route_stride, walks, routes, y, x, plane + y * width + x, width);
      });
    });
  });
}

// The plane is the sum of the sequences, each put back at the pixels it visits.
template <typename Acc, typename T>
void sum_plane(const T* from, int64_t route_stride, const Walks& walks, int64_t routes, T* plane) {
  bool columns = false;
  for (int64_t k = 0; k < routes && !walks.table; ++k) columns = columns || walks[k].columns;
  if (columns) return sum_along_columns<Acc>(from, route_stride, walks, routes, plane);
  const int64_t length = walks.length;
  Run<T>* const runs = strip_scratch.reserve<Run<T>>(routes * (1 + kGathered));
  if (!walks.table) {
    for (int64_t k = 0; k < routes; ++k) runs[k] = {from + k * route_stride, walks[k].reversed};
    return sum_runs<Acc>(runs, routes, length, plane);
  }
  T* const some = reinterpret_cast<T*>(runs + routes);
  for (int64_t k = 0; k < routes; ++k) runs[k] = {some + k * kGathered, false};
  for (int64_t pixel = 0; pixel < length; pixel += kGathered) {
    const int64_t pixels = smaller(kGathered, length - pixel);
    for (int64_t k = 0; k < routes; ++k) {
      const auto* const sequence = reinterpret_cast<const Bits<T>*>(from + k * route_stride);
      gather(sequence, walks[k].steps + pixel, pixels, reinterpret_cast<Bits<T>*>(some + k * kGathered));
    }
    sum_runs<Acc>(runs, routes, pixels, plane + pixel);
  }
}

}  // namespace
