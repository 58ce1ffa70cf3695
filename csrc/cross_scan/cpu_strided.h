// Jobs for tensors with any strides, one value at a time.
#pragma once
#include "cpu_jobs.h"

namespace {

constexpr int64_t kStridedTile = 64;  // pixels and channels of a tile, so that whole cache lines are used on both sides

// Calls run(batch, first pixel, pixels, first channel, channels) for tiles that cover the images.
template <typename Run>
void for_each_tile(const Job& job, Run run) {
  const int64_t length = job.walks.length, channels = job.channels;
  const int64_t across = (length + kStridedTile - 1) / kStridedTile;
  const int64_t down = (channels + kStridedTile - 1) / kStridedTile;
  for_each_task(job.batch * across * down, job.threads, [&](int64_t task) {
    const int64_t pixel = task / down % across * kStridedTile, channel = task % down * kStridedTile;
    run(task / down / across, pixel, minimum(kStridedTile, length - pixel), channel,
        minimum(kStridedTile, channels - channel));
  });
}

template <typename T>
void copy_strided(const Job& job) {
  for_each_tile(job, [&](int64_t b, int64_t pixel, int64_t pixels, int64_t channel, int64_t channels) {
    int64_t steps[kStridedTile];
    for (int64_t k = 0; k < job.routes; ++k) {
      steps_of_pixels(job.walks[k], pixel, pixels, steps);
      for (int64_t c = channel; c < channel + channels; ++c) {
        const T* const from = at<const T>(job.from, b, k, pixel, c);
        T* const to = at<T>(job.to, b, k, 0, c);
        for (int64_t i = 0; i < pixels; ++i) to[steps[i] * job.to.stride[2]] = from[i * job.from.stride[2]];
      }
    }
  });
}

template <typename Acc, typename T>
void sum_strided(const Job& job) {
  for_each_tile(job, [&](int64_t b, int64_t pixel, int64_t pixels, int64_t channel, int64_t channels) {
    int64_t steps[kStridedTile];
    Acc sums[kStridedTile][kStridedTile];
    for (int64_t k = 0; k < job.routes; ++k) {
      steps_of_pixels(job.walks[k], pixel, pixels, steps);
      for (int64_t c = 0; c < channels; ++c) {
        const T* const from = at<const T>(job.from, b, k, 0, channel + c);
        for (int64_t i = 0; i < pixels; ++i) {
          const Acc value = widen(from[steps[i] * job.from.stride[2]]);
          sums[c][i] = k == 0 ? value : sums[c][i] + value;
        }
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      T* const to = at<T>(job.to, b, 0, pixel, channel + c);
      for (int64_t i = 0; i < pixels; ++i) narrow(sums[c][i], to[i * job.to.stride[2]]);
    }
  });
}

}  // namespace
