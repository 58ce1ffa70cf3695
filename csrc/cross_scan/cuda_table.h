// Sequences with contiguous steps, along a table.
//
// If an image fits into shared memory, each channel is a plane there: it is read once, in order, and all routes are
// written in order, so that even a random permutation needs no scattered access to global memory. The merge reads
// routes and writes the image in order. Larger images use tiles of 32 steps by 32 channels, transposed in shared memory
// if the two sides have different layouts; rows of channels are whole cache lines in any order.
#pragma once
#include "cuda_walk.h"

namespace vmddpm {
namespace gpu {

constexpr int kTableThreads = 256;
constexpr int kTile = 32;
constexpr int kPerThread = kTile * kTile / kTableThreads;

struct TableArguments : CrossArguments {
  bool image_along_steps;
  int32_t planes;  // channels per block of the plane kernels; they share the reads of the table
};

// Element i of this thread in a 32 x 32 tile, with lanes along steps or along channels.
struct Cell {
  int step, channel;
  VMDDPM_DEVICE Cell(int i, bool along_steps) {
    const int index = thread() + i * kTableThreads, fast = index % kTile, slow = index / kTile;
    step = along_steps ? fast : slow;
    channel = along_steps ? slow : fast;
  }
};

// A block's tile: first step and channel, batch and route.
struct TilePlace {
  int64_t batch, route, step, channel;
  VMDDPM_DEVICE TilePlace(const TableArguments& a, int64_t routes) {
    const int64_t channel_tiles = (a.channels + kTile - 1) / kTile, step_tiles = (a.length + kTile - 1) / kTile;
    int64_t index = block();
    channel = index % channel_tiles * kTile;
    index /= channel_tiles;
    step = index % step_tiles * kTile;
    index /= step_tiles;
    route = index % routes;
    batch = index / routes;
  }
};

VMDDPM_DEVICE int64_t element(const View& view, int64_t batch, int64_t route, int64_t step, int64_t channel) {
  return origin(view, batch, route, channel) + step * view.stride[2];
}

template <typename Bits>
VMDDPM_KERNEL(kTableThreads, 4) scan_tiles(VMDDPM_ARGUMENTS(TableArguments) a) {
  Bits(*tile)[kTile + 1] = reinterpret_cast<Bits(*)[kTile + 1]>(shared());
  const TilePlace at(a, a.routes);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Cell cell(i, a.image_along_steps);
    const int64_t step = at.step + cell.step, channel = at.channel + cell.channel;
    if (step >= a.length || channel >= a.channels) continue;
    const int64_t pixel = a.table[at.route * a.length + step];
    tile[cell.step][cell.channel] = static_cast<const Bits*>(a.image.data)[element(a.image, at.batch, at.route, pixel, channel)];
  }
  barrier();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Cell cell(i, true);
    const int64_t step = at.step + cell.step, channel = at.channel + cell.channel;
    if (step >= a.length || channel >= a.channels) continue;
    static_cast<Bits*>(a.sequences.data)[element(a.sequences, at.batch, at.route, step, channel)] = tile[cell.step][cell.channel];
  }
}

template <typename Bits>
VMDDPM_KERNEL(kTableThreads, 3) scan_table_planes(VMDDPM_ARGUMENTS(TableArguments) a) {
  Bits* planes = reinterpret_cast<Bits*>(shared());
  const ScanImages images{a};
  const int64_t groups = (a.channels + a.planes - 1) / a.planes;
  const int64_t first = block() % groups * a.planes;
  const int64_t image = block() / groups % images.count(), batch = block() / groups / images.count();
  const int count = static_cast<int>(a.channels - first < a.planes ? a.channels - first : a.planes);
  for (int c = 0; c < count; ++c) {
    const Bits* from = static_cast<const Bits*>(a.image.data) + origin(a.image, batch, image, first + c);
    for (int64_t p = thread(); p < a.length; p += kTableThreads) planes[c * a.length + p] = from[p];
  }
  barrier();
  for (int64_t route = image; route < images.end_route(image); ++route) {
    Bits* to = static_cast<Bits*>(a.sequences.data) + origin(a.sequences, batch, route, first);
    for (int64_t step = thread(); step < a.length; step += kTableThreads) {
      const int64_t pixel = a.table[route * a.length + step];
      for (int c = 0; c < count; ++c) to[c * a.sequences.stride[3] + step] = planes[c * a.length + pixel];
    }
  }
}

// inverse[k][table[k][l]] = l.
VMDDPM_KERNEL(kTableThreads, 4) invert_table(VMDDPM_ARGUMENTS(CrossArguments) a) {
  const int64_t index = block() * kTableThreads + thread();
  if (index >= a.routes * a.length) return;
  const int64_t route = index / a.length;
  const_cast<int32_t*>(a.inverse)[route * a.length + a.table[index]] = static_cast<int32_t>(index - route * a.length);
}

template <typename Acc, typename Element>
VMDDPM_KERNEL(kTableThreads, 2) merge_tiles(VMDDPM_ARGUMENTS(TableArguments) a) {
  Acc(*tile)[kTile + 1] = reinterpret_cast<Acc(*)[kTile + 1]>(shared());
  const MergeImages<Acc> images{a};
  const TilePlace at(a, images.count());
  Acc sums[kPerThread];
  for (int64_t k = at.route; k < images.end_route(at.route); ++k) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Cell cell(i, true);
      const int64_t pixel = at.step + cell.step, channel = at.channel + cell.channel;
      if (pixel >= a.length || channel >= a.channels) continue;
      const int64_t step = a.inverse[k * a.length + pixel];
      const Acc more = widen(static_cast<const Element*>(a.sequences.data)[element(a.sequences, at.batch, k, step, channel)]);
      sums[i] = k == at.route ? more : static_cast<Acc>(sums[i] + more);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Cell cell(i, true);
    tile[cell.step][cell.channel] = sums[i];
  }
  barrier();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Cell cell(i, a.image_along_steps);
    const int64_t pixel = at.step + cell.step, channel = at.channel + cell.channel;
    if (pixel >= a.length || channel >= a.channels) continue;
    narrow(tile[cell.step][cell.channel],
           static_cast<Element*>(a.image.data)[element(a.image, at.batch, at.route, pixel, channel)]);
  }
}

template <typename Acc, typename Element>
VMDDPM_KERNEL(kTableThreads, 3) merge_table_planes(VMDDPM_ARGUMENTS(TableArguments) a) {
  Acc* planes = reinterpret_cast<Acc*>(shared());
  const MergeImages<Acc> images{a};
  const int64_t groups = (a.channels + a.planes - 1) / a.planes;
  const int64_t first = block() % groups * a.planes;
  const int64_t image = block() / groups % images.count(), batch = block() / groups / images.count();
  const int count = static_cast<int>(a.channels - first < a.planes ? a.channels - first : a.planes);
  for (int64_t route = image; route < images.end_route(image); ++route) {
    const Element* from = static_cast<const Element*>(a.sequences.data) + origin(a.sequences, batch, route, first);
    for (int64_t step = thread(); step < a.length; step += kTableThreads) {
      const int64_t pixel = a.table[route * a.length + step];
      for (int c = 0; c < count; ++c) {
        const Acc value = widen(from[c * a.sequences.stride[3] + step]);
        Acc& sum = planes[c * a.length + pixel];
        sum = route == image ? value : static_cast<Acc>(sum + value);
      }
    }
    barrier();  // the next route visits the pixels in another order
  }
  for (int c = 0; c < count; ++c) {
    Element* to = static_cast<Element*>(a.image.data) + origin(a.image, batch, image, first + c);
    for (int64_t p = thread(); p < a.length; p += kTableThreads) narrow(planes[c * a.length + p], to[p]);
  }
}

}  // namespace gpu
}  // namespace vmddpm
