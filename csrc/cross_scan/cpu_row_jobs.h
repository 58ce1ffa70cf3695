// Jobs for sequences with contiguous channels: a pixel is a row of the image and a row of each sequence. An image with
// contiguous pixels is transposed, some pixels at a time, to or from a panel of rows that stays in the cache.
#pragma once
#include "cpu_jobs.h"
#include "cpu_lines.h"
#include "cpu_turn.h"

namespace {

constexpr int64_t kRowPanelBytes = 64 << 10;

// Prefetch distance in rows. Rows are visited in any order and are too short for the hardware prefetcher.
constexpr int64_t kPrefetchDistance = 6;
template <typename T>
VMDDPM_INLINE void prefetch_row(const T* row, int64_t channels) {
  constexpr int64_t kValues = kCacheLine / sizeof(T);
  for (int64_t c = 0; c < channels; c += kValues) prefetch_near(row + c);
}

template <typename T>
void copy_rows(const Job& job) {
  constexpr int64_t kUnit = kCacheLine / sizeof(T);
  const int64_t length = job.walks.length, channels = job.channels;
  const bool one_image = job.from.stride[1] == 0, rows = job.from_layout == Layout::rows;
  const int64_t images = one_image ? 1 : job.routes, count = job.batch * images, bytes = channels * sizeof(T);
  const int64_t parts = parts_of(length, kUnit, bytes, kRowPanelBytes, count, job.threads);
  for_each_task(count * parts, job.threads, [&](int64_t task) {
    const int64_t b = task / parts / images, image = task / parts % images, end = one_image ? job.routes : image + 1;
    const UnitPart part(length, kUnit, parts, task % parts);
    const T* from = at<const T>(job.from, b, image, part.first, 0);
    int64_t between = job.from.stride[2];
    if (!rows) {
      T* const panel = panel_workspace.reserve<T>(part.count() * channels);
      turn(from, job.from.stride[3], channels, part.count(), panel, channels);
      from = panel;
      between = channels;
    }
    int64_t* const steps = strip_workspace.reserve<int64_t>(part.count());
    for (int64_t k = image; k < end; ++k) {
      steps_of_pixels(job.walks[k], part.first, part.count(), steps);
      T* const to = at<T>(job.to, b, k, 0, 0);
      for (int64_t i = 0; i < part.count(); ++i) {
        if (k == image) prefetch_row(from + (i + kPrefetchDistance) * between, channels);
        copy_run(to + steps[i] * job.to.stride[2], from + i * between, channels, false, job.past_cache);
      }
    }
    if (job.past_cache) finish_past_cache();
  });
}

// Transposes a panel of rows to pieces of planes, some channels at a time, and writes whole runs: squares would write
// each cache line in several parts, too far apart in time.
template <typename T>
void write_planes(const T* panel, int64_t channels, int64_t pixels, T* to, int64_t to_pitch, bool past_cache) {
  using U = Bits<T>;
  U* const block = block_workspace.reserve<U>(kMostSide * pixels);
  for (int64_t c = 0; c < channels; c += kMostSide) {
    const int64_t count = minimum(kMostSide, channels - c);
    turn(reinterpret_cast<const U*>(panel) + c, channels, pixels, count, block, pixels);
    for (int64_t i = 0; i < count; ++i) {
      copy_run(reinterpret_cast<U*>(to) + (c + i) * to_pitch, block + i * pixels, pixels, false, past_cache);
    }
  }
}

template <typename Acc, typename T>
void sum_rows(const Job& job) {
  constexpr int64_t kUnit = kCacheLine / sizeof(T);
  const int64_t length = job.walks.length, channels = job.channels;
  const bool rows = job.to_layout == Layout::rows;
  const int64_t bytes = channels * sizeof(T), routes = job.routes;
  const int64_t parts = parts_of(length, kUnit, bytes, kRowPanelBytes, job.batch, job.threads);
  for_each_task(job.batch * parts, job.threads, [&](int64_t task) {
    const int64_t b = task / parts;
    const UnitPart part(length, kUnit, parts, task % parts);
    T* const to = at<T>(job.to, b, 0, part.first, 0);
    T* const panel = rows ? to : panel_workspace.reserve<T>(part.count() * channels);
    const int64_t between = rows ? job.to.stride[2] : channels, count = part.count();
    Run<T>* const runs = strip_workspace.reserve<Run<T>>(routes * (1 + count));
    int64_t* const steps = reinterpret_cast<int64_t*>(runs + routes);
    for (int64_t k = 0; k < routes; ++k) steps_of_pixels(job.walks[k], part.first, count, steps + k * count);
    for (int64_t i = 0; i < count; ++i) {
      if (i + kPrefetchDistance < count) {
        for (int64_t k = 0; k < routes; ++k) {
          prefetch_row(at<const T>(job.from, b, k, steps[k * count + i + kPrefetchDistance], 0), channels);
        }
      }
      for (int64_t k = 0; k < routes; ++k) runs[k] = {at<const T>(job.from, b, k, steps[k * count + i], 0), false};
      sum_runs<Acc>(runs, routes, channels, panel + i * between);
    }
    if (!rows) write_planes(panel, channels, count, to, job.to.stride[3], job.past_cache);
    if (job.past_cache) finish_past_cache();
  });
}

}  // namespace
