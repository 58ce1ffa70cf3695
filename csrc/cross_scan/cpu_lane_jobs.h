// Jobs along a table for sequences with contiguous steps. They process one register of channels at a time, so that a
// pixel is one register, and transpose squares of steps and channels.
#pragma once
#include "cpu_jobs.h"
#include "cpu_lines.h"
#include "cpu_turn.h"

namespace {

// Calls run(batch, image, first channel, channels) for all channels, at least `lanes` at a time.
template <typename Run>
void for_each_lanes(const Job& job, int64_t images, int64_t lanes, Run run) {
  const int64_t parts = maximum(1, job.channels / lanes);
  for_each_task(job.batch * images * parts, job.threads, [&](int64_t task) {
    const int64_t first = task % parts * lanes, end = task % parts == parts - 1 ? job.channels : first + lanes;
    run(task / parts / images, task / parts % images, first, end - first);
    if (job.past_cache) finish_past_cache();
  });
}

// to[c * to_pitch + step] = from[pixels[step] * from_pitch + c] for N channels.
template <int N, typename T>
void gather_lanes(const T* from, int64_t from_pitch, const int32_t* pixels, int64_t length, T* to, int64_t to_pitch) {
  for_each_start(length, N, [&](int64_t step) {
    Lanes<T, N> square[N];
    VMDDPM_UNROLL
    for (int i = 0; i < N; ++i) square[i] = load_as<Lanes<T, N>>(from + pixels[step + i] * from_pitch);
    turn_square<N>(square);
    VMDDPM_UNROLL
    for (int i = 0; i < N; ++i) store_as(to + i * to_pitch + step, square[i]);
  });
}

// Copies N channels between planes, forwards or backwards.
template <int N, typename T>
void copy_planes_of_lanes(const T* from, int64_t from_pitch, int64_t length, bool reversed, T* to, int64_t to_pitch) {
  for (int c = 0; c < N; ++c) {
    const T* const plane = from + c * from_pitch;
    for_each_start(length, N, [&](int64_t step) {
      const auto lanes = load_as<Lanes<T, N>>(plane + (reversed ? length - N - step : step));
      store_as(to + c * to_pitch + step, reversed ? reversed_lanes(lanes) : lanes);
    });
  }
}

// Copies walk k without transposing, if it is along rows or reverses an earlier walk along columns of the same planes.
// Returns whether it did.
template <int N, typename T>
bool copy_known_walk(const Job& job, const T* planes, int64_t image, int64_t k, T* to) {
  if (job.walks.irregular) return false;
  const Walk& walk = job.walks.regular[k];
  const int64_t pitch = job.to.stride[3], length = job.walks.length;
  if (!walk.columns) {
    copy_planes_of_lanes<N>(planes, job.from.stride[3], length, walk.reversed, to, pitch);
    return true;
  }
  if (k < image + 2) return false;
  const bool reversed = walk.reversed != job.walks.regular[k - 2].reversed;
  copy_planes_of_lanes<N>(to - 2 * job.to.stride[1], pitch, length, reversed, to, pitch);
  return true;
}

template <typename T>
void copy_lanes(const Job& job) {
  const int64_t length = job.walks.length;
  const bool one_image = job.from.stride[1] == 0, planes = job.from_layout == Layout::planes;
  const int64_t pitch = job.to.stride[3];
  with_side<T>(minimum(job.channels, length), [&](auto side) {
    constexpr int N = decltype(side)::value;
    // Collect contiguous planes in the cache before writing them past it.
    const bool together = job.past_cache && pitch == length && length * N * int64_t{sizeof(T)} <= kPanelBytes;
    for_each_lanes(job, one_image ? 1 : job.routes, N, [&](int64_t b, int64_t image, int64_t first, int64_t channels) {
      for_each_start(channels, N, [&](int64_t c) {
        const T* const start = at<const T>(job.from, b, image, 0, first + c);
        const T* from = planes ? nullptr : start;
        int64_t from_pitch = job.from.stride[2];
        const auto turn_planes = [&] {
          T* const panel = panel_workspace.reserve<T>(length * N);
          turn(start, job.from.stride[3], N, length, panel, N, N * job.from.stride[3]);
          from = panel;
          from_pitch = N;
        };
        T* const block = together ? strip_workspace.reserve<T>(length * N) : nullptr;
        for (int64_t k = image; k < (one_image ? job.routes : image + 1); ++k) {
          T* const to = at<T>(job.to, b, k, 0, first + c);
          if (planes && !together && copy_known_walk<N>(job, start, image, k, to)) continue;
          if (!from) turn_planes();
          gather_lanes<N>(from, from_pitch, job.walks[k].pixels, length, together ? block : to, pitch);
          if (together) copy_run(to, block, length * N, false, true);
        }
      });
    });
  });
}

// sums[pixels[step] * N + c] = (kFirst) or += from[c * pitch + step]. Prefetches `prefetch_offset` values ahead of its
// reads.
template <bool kFirst, int N, typename Acc, typename T>
void add_lanes(const T* from, int64_t pitch, const int32_t* pixels, int64_t length, Acc* sums, int64_t prefetch_offset) {
  using V = Lanes<Acc, N>;
  int64_t done = 0;
  for_each_start(length, N, [&](int64_t step) {
    V square[N];
    VMDDPM_UNROLL
    for (int i = 0; i < N; ++i) {
      prefetch_near(from + i * pitch + step + prefetch_offset);
      square[i] = widen_lanes<N>(from + i * pitch + step);
    }
    turn_square<N>(square);
    const auto add = [&](int64_t i) {
      Acc* const sum = sums + pixels[step + i] * int64_t{N};
      store_as(sum, kFirst ? square[i] : load_as<V>(sum) + square[i]);
    };
    if (step == done) {
      VMDDPM_UNROLL
      for (int i = 0; i < N; ++i) add(i);
    } else {
      for (int64_t i = done - step; i < N; ++i) add(i);
    }
    done = step + N;
  });
}

template <typename Acc, typename T>
void sum_lanes(const Job& job) {
  const int64_t length = job.walks.length;
  const bool planes = job.to_layout == Layout::planes;
  with_side<Acc>(minimum(job.channels, length), [&](auto side) {
    constexpr int N = decltype(side)::value;
    using V = Lanes<Acc, N>;
    for_each_lanes(job, 1, N, [&](int64_t b, int64_t, int64_t first, int64_t channels) {
      Acc* const sums = panel_workspace.reserve<Acc>(length * N);
      for_each_start(channels, N, [&](int64_t c) {
        for (int64_t k = 0; k < job.routes; ++k) {
          const T* const from = at<const T>(job.from, b, k, 0, first + c);
          const int32_t* const pixels = job.walks[k].pixels;
          // The next route, or the next channels of the first.
          const int64_t pitch = job.from.stride[3], next = job.from.stride[1];
          const int64_t prefetch_offset = k + 1 < job.routes ? next : N * pitch - k * next;
          if (k == 0) {
            add_lanes<true, N>(from, pitch, pixels, length, sums, prefetch_offset);
          } else {
            add_lanes<false, N>(from, pitch, pixels, length, sums, prefetch_offset);
          }
        }
        T* const to = at<T>(job.to, b, 0, 0, first + c);
        if (!planes) {
          for (int64_t pixel = 0; pixel < length; ++pixel) {
            narrow_lanes<N>(to + pixel * job.to.stride[2], load_as<V>(sums + pixel * N));
          }
          return;
        }
        for_each_start(length, N, [&](int64_t pixel) {
          V square[N];
          VMDDPM_UNROLL
          for (int i = 0; i < N; ++i) square[i] = load_as<V>(sums + (pixel + i) * N);
          turn_square<N>(square);
          VMDDPM_UNROLL
          for (int i = 0; i < N; ++i) narrow_lanes<N>(to + i * job.to.stride[3] + pixel, square[i]);
        });
      });
    });
  });
}

}  // namespace
