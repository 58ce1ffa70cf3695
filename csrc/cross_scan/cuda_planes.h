// Sequences with contiguous steps, along the regular routes. A block holds some channels of a tile of an image, or of
// the whole image if it fits, in shared memory. It reads the tile once and writes all routes, or sums all routes in it.
//
// An image with contiguous channels is transposed in shared memory. Sums of half precision are kept in float.
#pragma once
#include "cuda_runs.h"

namespace vmddpm {
namespace gpu {

constexpr int kMostPlaneThreads = 1024;

struct PlaneArguments : CrossArguments {
  int32_t tile_channels, tile_height, tile_width;
  int32_t down, across;  // tiles of an image
  int64_t groups;        // of channels
  int32_t pitch, plane;  // strides of a tile in shared memory: see Tile
  bool image_in_rows, image_in_vectors;
};

struct PlaneBlock {
  int64_t batch, image, channel;
  Tile tile;
  VMDDPM_DEVICE PlaneBlock(const PlaneArguments& a, int64_t images) {
    int64_t index = block();
    channel = index % a.groups * a.tile_channels;
    index /= a.groups;
    tile.left = static_cast<int>(index % a.across) * a.tile_width;
    index /= a.across;
    tile.top = static_cast<int>(index % a.down) * a.tile_height;
    index /= a.down;
    image = index % images;
    batch = index / images;
    const int64_t channels_left = a.channels - channel;
    const int rows_left = a.height - tile.top, columns_left = a.width - tile.left;
    tile.channels = channels_left < a.tile_channels ? static_cast<int>(channels_left) : a.tile_channels;
    tile.height = rows_left < a.tile_height ? rows_left : a.tile_height;
    tile.width = columns_left < a.tile_width ? columns_left : a.tile_width;
    tile.pitch = a.pitch;
    tile.plane = a.plane;
  }
};

// Divides a tile into parts of n channels of one pixel, numbered pixel by pixel. memory() is the address of the first
// channel of a part in the image, at() its offset in the tile in shared memory, where planes and rows are padded.
template <typename T, int n>
class PixelParts {
 public:
  VMDDPM_DEVICE PixelParts(T* image, const View& view, int width, const Tile& tile)
      : image_(image), stride_(view.stride[2]), channel_stride_(view.stride[3]), width_(width), tile_(tile),
        per_pixel_((tile.channels + n - 1) / n), by_parts_(per_pixel_), by_width_(tile.width) {}
  VMDDPM_DEVICE int count() const { return tile_.pixels() * per_pixel_; }
  VMDDPM_DEVICE T* memory(int index) const {
    const int pixel = by_parts_(index), channel = (index - pixel * per_pixel_) * n, h = by_width_(pixel);
    const int64_t place = static_cast<int64_t>(tile_.top + h) * width_ + tile_.left + pixel - h * tile_.width;
    return image_ + place * stride_ + channel * channel_stride_;
  }
  VMDDPM_DEVICE int at(int index) const {
    const int pixel = by_parts_(index), channel = (index - pixel * per_pixel_) * n, h = by_width_(pixel);
    return channel * tile_.plane + h * tile_.pitch + pixel - h * tile_.width;
  }

 private:
  T* image_;
  int64_t stride_, channel_stride_;
  int width_;
  const Tile& tile_;
  int per_pixel_;
  Divisor by_parts_, by_width_;
};

template <int n, typename T, typename Use>
VMDDPM_DEVICE void read_pixels(const T* image, const View& view, int width, const Tile& tile, Use use) {
  const PixelParts<const T, n> parts(image, view, width, tile);
#pragma unroll 1
  for (int i = thread(); i < parts.count(); i += threads()) {
    const Elements<T, n> values = read_elements<n>(parts.memory(i));
    const int at = parts.at(i);
#pragma unroll
    for (int j = 0; j < n; ++j) use(at + j * tile.plane, values.at[j]);
  }
}

template <int n, typename T, typename Value>
VMDDPM_DEVICE void write_pixels(T* image, const View& view, int width, const Tile& tile, Value value) {
  const PixelParts<T, n> parts(image, view, width, tile);
#pragma unroll 1
  for (int i = thread(); i < parts.count(); i += threads()) {
    const int at = parts.at(i);
    Elements<T, n> values;
#pragma unroll
    for (int j = 0; j < n; ++j) values.at[j] = value(at + j * tile.plane);
    write_elements<n>(parts.memory(i), values);
  }
}

template <typename Bits>
VMDDPM_KERNEL(kMostPlaneThreads, 1) scan_planes(VMDDPM_ARGUMENTS(PlaneArguments) a) {
  Bits* const pixels = reinterpret_cast<Bits*>(shared());
  const ScanImages images{a};
  const PlaneBlock at(a, images.count());
  const Bits* const image = static_cast<const Bits*>(a.image.data) + origin(a.image, at.batch, at.image, at.channel);
  const auto keep = [&](int place, Bits value) { write_shared(pixels + place, value); };
  if (!a.image_in_rows) {
    const Passage p = passage({}, a.height, a.width, at.tile);
    read_runs<Bits>(Runs<const Bits>(image, a.image, p, at.tile.channels), Cursor(p, at.tile.plane), keep);
  } else if (a.image_in_vectors) {
    read_pixels<Vector<Bits>::kCount>(image, a.image, a.width, at.tile, keep);
  } else {
    read_pixels<1>(image, a.image, a.width, at.tile, keep);
  }
  barrier();
  for (int64_t route = at.image; route < images.end_route(at.image); ++route) {
    const Passage p = passage(regular_walk(a.scans, route), a.height, a.width, at.tile);
    Bits* const sequence = static_cast<Bits*>(a.sequences.data) + origin(a.sequences, at.batch, route, at.channel);
    write_runs<Bits>(Runs<Bits>(sequence, a.sequences, p, at.tile.channels), Cursor(p, at.tile.plane),
                     [&](int place) { return read_shared(pixels + place); });
  }
}

template <typename Acc, typename Element>
VMDDPM_KERNEL(kMostPlaneThreads, 1) merge_planes(VMDDPM_ARGUMENTS(PlaneArguments) a) {
  Acc* const sums = reinterpret_cast<Acc*>(shared());
  const MergeImages<Acc> images{a};
  const PlaneBlock at(a, images.count());
  for (int64_t route = at.image; route < images.end_route(at.image); ++route) {
    const Passage p = passage(regular_walk(a.scans, route), a.height, a.width, at.tile);
    const Element* const sequence =
        static_cast<const Element*>(a.sequences.data) + origin(a.sequences, at.batch, route, at.channel);
    const bool first = route == at.image;
    read_runs<Element>(Runs<const Element>(sequence, a.sequences, p, at.tile.channels), Cursor(p, at.tile.plane),
                       [&](int place, Element value) {
                         Acc sum = widen(value);
                         if (!first) sum = read_shared(sums + place) + sum;
                         write_shared(sums + place, sum);
                       });
    barrier();  // the next route visits the pixels in another order
  }
  Element* const image = static_cast<Element*>(a.image.data) + origin(a.image, at.batch, at.image, at.channel);
  const auto sum = [&](int place) {
    Element value;
    narrow(read_shared(sums + place), value);
    return value;
  };
  if (!a.image_in_rows) {
    const Passage p = passage({}, a.height, a.width, at.tile);
    write_runs<Element>(Runs<Element>(image, a.image, p, at.tile.channels), Cursor(p, at.tile.plane), sum);
  } else if (a.image_in_vectors) {
    write_pixels<Vector<Element>::kCount>(image, a.image, a.width, at.tile, sum);
  } else {
    write_pixels<1>(image, a.image, a.width, at.tile, sum);
  }
}

}  // namespace gpu
}  // namespace vmddpm
