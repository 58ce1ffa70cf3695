// Sequences with contiguous channels, in any order of the pixels. A thread holds some channels of a pixel in registers
// and writes them to all routes, or sums them over all routes. An image with contiguous pixels is transposed in shared
// memory, once for all routes.
#pragma once
#include "cuda_runs.h"

namespace vmddpm {
namespace gpu {

constexpr int kRowThreads = 256;

struct RowArguments : CrossArguments {
  int32_t tile_pixels, tile_channels;
  int64_t tiles, groups;  // tiles of pixels, groups of channels
  int32_t pitch;          // elements from one channel to the next in shared memory
};

// The tile of a block; each thread processes n channels of a pixel.
template <int n>
struct RowBlock {
  int64_t batch, image, pixel, channel;
  int pixels, channels;
  VMDDPM_DEVICE RowBlock(const RowArguments& a, int64_t images) {
    int64_t index = block();
    channel = index % a.groups * a.tile_channels;
    index /= a.groups;
    pixel = index % a.tiles * a.tile_pixels;
    index /= a.tiles;
    image = index % images;
    batch = index / images;
    const int64_t pixels_left = a.length - pixel, channels_left = a.channels - channel;
    pixels = pixels_left < a.tile_pixels ? static_cast<int>(pixels_left) : a.tile_pixels;
    channels = channels_left < a.tile_channels ? static_cast<int>(channels_left) : a.tile_channels;
  }
  // Each channel of the tile is one line of its pixels.
  VMDDPM_DEVICE Passage line() const { return {1, pixels, pixel, pixels, 0, 0, 1}; }
};

// Calls use(pixel in the tile, channel in the tile) for each part of n channels.
template <int n, typename Use>
VMDDPM_DEVICE void for_each_part(const RowBlock<n>& at, Use use) {
  const int per_pixel = (at.channels + n - 1) / n;
  const Divisor by_parts(per_pixel);
#pragma unroll 1
  for (int i = thread(); i < at.pixels * per_pixel; i += threads()) {
    const int pixel = by_parts(i);
    use(pixel, (i - pixel * per_pixel) * n);
  }
}

template <typename T>
VMDDPM_DEVICE T* part_of(const View& view, int64_t batch, int64_t route, int64_t pixel, int64_t channel) {
  return static_cast<T*>(view.data) + origin(view, batch, route, channel) + pixel * view.stride[2];
}

template <typename Bits, int n, bool turned>
VMDDPM_KERNEL(kRowThreads, 3) scan_rows(VMDDPM_ARGUMENTS(RowArguments) a) {
  Bits* const tile = reinterpret_cast<Bits*>(shared());
  const ScanImages images{a};
  const RowBlock<n> at(a, images.count());
  if constexpr (turned) {
    const Bits* const image = static_cast<const Bits*>(a.image.data) + origin(a.image, at.batch, at.image, at.channel);
    const Passage p = at.line();
    read_runs<Bits>(Runs<const Bits>(image, a.image, p, at.channels), Cursor(p, a.pitch),
                    [&](int place, Bits value) { write_shared(tile + place, value); });
    barrier();
  }
  for_each_part(at, [&](int pixel_in_tile, int channel_in_tile) {
    const int64_t pixel = at.pixel + pixel_in_tile, channel = at.channel + channel_in_tile;
    Elements<Bits, n> values;
    if constexpr (turned) {
#pragma unroll
      for (int j = 0; j < n; ++j) values.at[j] = read_shared(tile + (channel_in_tile + j) * a.pitch + pixel_in_tile);
    } else {
      values = read_elements<n>(part_of<const Bits>(a.image, at.batch, at.image, pixel, channel));
    }
    const int h = static_cast<int>(pixel) / a.width, w = static_cast<int>(pixel) - h * a.width;
    for (int64_t route = at.image; route < images.end_route(at.image); ++route) {
      write_elements<n>(part_of<Bits>(a.sequences, at.batch, route, step_of(a, route, h, w), channel), values);
    }
  });
}

template <typename Acc, typename Element, int n, bool turned>
VMDDPM_KERNEL(kRowThreads, 3) merge_rows(VMDDPM_ARGUMENTS(RowArguments) a) {
  Element* const tile = reinterpret_cast<Element*>(shared());
  const MergeImages<Acc> images{a};
  const RowBlock<n> at(a, images.count());
  for_each_part(at, [&](int pixel_in_tile, int channel_in_tile) {
    const int64_t pixel = at.pixel + pixel_in_tile, channel = at.channel + channel_in_tile;
    const int h = static_cast<int>(pixel) / a.width, w = static_cast<int>(pixel) - h * a.width;
    Acc sums[n];
#pragma unroll 4
    for (int64_t route = at.image; route < images.end_route(at.image); ++route) {
      const Elements<Element, n> values =
          read_elements<n>(part_of<const Element>(a.sequences, at.batch, route, step_of(a, route, h, w), channel));
#pragma unroll
      for (int j = 0; j < n; ++j) {
        Acc sum = widen(values.at[j]);
        if (route != at.image) sum = sums[j] + sum;
        sums[j] = sum;
      }
    }
    Elements<Element, n> rounded;
#pragma unroll
    for (int j = 0; j < n; ++j) narrow(sums[j], rounded.at[j]);
    if constexpr (turned) {
#pragma unroll
      for (int j = 0; j < n; ++j) write_shared(tile + (channel_in_tile + j) * a.pitch + pixel_in_tile, rounded.at[j]);
    } else {
      write_elements<n>(part_of<Element>(a.image, at.batch, at.image, pixel, channel), rounded);
    }
  });
  if constexpr (turned) {
    barrier();
    Element* const image = static_cast<Element*>(a.image.data) + origin(a.image, at.batch, at.image, at.channel);
    const Passage p = at.line();
    write_runs<Element>(Runs<Element>(image, a.image, p, at.channels), Cursor(p, a.pitch),
                        [&](int place) { return read_shared(tile + place); });
  }
}

}  // namespace gpu
}  // namespace vmddpm
