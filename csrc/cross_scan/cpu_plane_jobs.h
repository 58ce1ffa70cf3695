// Jobs for sequences with contiguous steps. An image with contiguous channels is transposed, some channels at a time,
// to or from a panel of planes that stays in the cache.
#pragma once
#include "cpu_jobs.h"
#include "cpu_planes.h"

namespace {

// The distance between planes in a panel: an odd number of cache lines, so that planes do not compete for cache sets.
template <typename T>
int64_t panel_pitch(int64_t length) {
  constexpr int64_t kValues = kCacheLine / sizeof(T);
  return ((length + kValues - 1) / kValues | 1) * kValues;
}

// The distance to the next plane of the same sequence, which is prefetched, or 0 for none.
inline int64_t plane_prefetch_offset(int64_t stride, int64_t bytes) { return bytes <= kPanelBytes ? stride : 0; }

constexpr int64_t kBlockBytes = 32 << 10;  // for all routes of some small planes

template <typename T>
void copy_planes(const Job& job) {
  constexpr int64_t kUnit = kCacheLine / sizeof(T);
  const int64_t length = job.walks.length, channels = job.channels, pitch = panel_pitch<T>(length);
  const bool one_image = job.from.stride[1] == 0, planes = job.from_layout == Layout::planes;
  const int64_t images = one_image ? 1 : job.routes, count = job.batch * images, bytes = pitch * sizeof(T);
  const int64_t parts = parts_of(channels, planes ? 1 : kUnit, bytes, kPanelBytes, count, job.threads);
  // Collect small contiguous planes in the cache before writing them past it.
  const int64_t written = bytes * (one_image ? job.routes : 1);
  const bool together = job.past_cache && job.to.stride[3] == length && written <= kBlockBytes / 4;
  for_each_task(count * parts, job.threads, [&](int64_t task) {
    const int64_t b = task / parts / images, image = task / parts % images, end = one_image ? job.routes : image + 1;
    const UnitPart part(channels, planes ? 1 : kUnit, parts, task % parts);
    const T* from = at<const T>(job.from, b, image, 0, part.first);
    int64_t between = job.from.stride[3];
    if (!planes) {
      T* const panel = panel_workspace.reserve<T>(part.count() * pitch);
      turn(from, job.from.stride[2], length, part.count(), panel, pitch);
      from = panel;
      between = pitch;
    }
    T* const strip = strip_workspace.reserve<T>(length);
    const int64_t prefetch_offset = planes ? plane_prefetch_offset(between, bytes) : 0;
    T* const to = at<T>(job.to, b, image, 0, part.first);
    if (!together) {
      for (int64_t c = 0; c < part.count(); ++c) {
        walk_plane(from + c * between, job.walks, image, end, to + c * job.to.stride[3], job.to.stride[1],
                   job.past_cache, prefetch_offset, strip);
      }
    } else {
      T* const block = block_workspace.reserve<T>(kBlockBytes / sizeof(T));
      const int64_t most = kBlockBytes / (int64_t{sizeof(T)} * length * (end - image));
      for (int64_t c = 0; c < part.count(); c += most) {
        const int64_t count = minimum(most, part.count() - c), size = count * length;
        for (int64_t i = 0; i < count; ++i) {
          walk_plane(from + (c + i) * between, job.walks, image, end, block + i * length, size, false, prefetch_offset,
                     strip);
        }
        for (int64_t k = image; k < end; ++k) {
          copy_run(to + (k - image) * job.to.stride[1] + c * length, block + (k - image) * size, size, false, true);
        }
      }
    }
    if (job.past_cache) finish_past_cache();
  });
}

template <typename Acc, typename T>
void sum_planes(const Job& job) {
  constexpr int64_t kUnit = kCacheLine / sizeof(T);
  const int64_t length = job.walks.length, channels = job.channels, pitch = panel_pitch<T>(length);
  const bool planes = job.to_layout == Layout::planes;
  const int64_t bytes = pitch * sizeof(T);
  const int64_t prefetch_offset = plane_prefetch_offset(job.from.stride[3], job.routes * bytes);
  const int64_t parts = parts_of(channels, planes ? 1 : kUnit, bytes, kPanelBytes, job.batch, job.threads);
  for_each_task(job.batch * parts, job.threads, [&](int64_t task) {
    const int64_t b = task / parts;
    const UnitPart part(channels, planes ? 1 : kUnit, parts, task % parts);
    T* const to = at<T>(job.to, b, 0, 0, part.first);
    T* const panel = planes ? to : panel_workspace.reserve<T>(part.count() * pitch);
    const int64_t between = planes ? job.to.stride[3] : pitch;
    T* const strip = strip_workspace.reserve<T>(minimum(job.walks.height, kMostSide) * job.walks.width);
    for (int64_t c = 0; c < part.count(); ++c) {
      sum_plane<Acc>(at<const T>(job.from, b, 0, 0, part.first + c), job.from.stride[1], job.walks, job.routes,
                     panel + c * between, planes && job.past_cache, prefetch_offset, strip);
    }
    if (planes && job.past_cache) finish_past_cache();
    if (planes) return;
    using U = Bits<T>;
    turn(reinterpret_cast<const U*>(panel), pitch, part.count(), length, reinterpret_cast<U*>(to), job.to.stride[2]);
  });
}

}  // namespace
