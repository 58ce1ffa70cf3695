// Plans that divide a call into blocks by its sizes, strides and the limits of the GPU.
#pragma once
#include "../common/integers.h"
#include "cuda_planes.h"
#include "cuda_rows.h"
#include "cuda_table.h"

namespace vmddpm {
namespace gpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_down(int64_t a, int64_t unit) { return a / unit * unit; }

inline bool along_steps(const View& view) { return magnitude(view.stride[3]) > magnitude(view.stride[2]); }

// Whether the channels of each pixel are whole, aligned vectors of 16 bytes.
inline bool rows_in_vectors(const View& view, int64_t channels, int64_t bytes) {
  const int64_t all = view.stride[0] | view.stride[1] | view.stride[2] | channels;
  return view.stride[3] == 1 && all * bytes % 16 == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// Shared memory of the plane kernels. A tile of kTileBytes allows several blocks on a multiprocessor. If such a tile
// would split sectors, it may take all shared memory; if that is not enough either, it takes kCutBytes, as larger tiles
// split fewer sectors. With enough blocks, a block moves at least kLeastTileBytes.
constexpr int64_t kTileBytes = 48 * 1024, kCutBytes = 96 * 1024, kLeastTileBytes = 8 * 1024;
constexpr int64_t kMostTileElements = 60000;  // see Divisor
constexpr int64_t kBlocksEach = 2;            // per multiprocessor, before blocks get larger

struct PlanePlan {
  PlaneArguments arguments;
  int64_t blocks, shared_bytes;
  int threads;
};

// The pitch of the rows of a tile is odd and larger than the rows, to avoid bank conflicts along rows and columns. The
// pitch of channels puts the two vectors of a pixel's sector into different halves of the banks: vector * plane * kept
// is 64 bytes more than a multiple of 128.
inline int64_t tile_pitch(int64_t width) { return width + (width % 2 == 0 ? 1 : 2); }
inline int64_t tile_plane(int64_t height, int64_t width, int64_t bytes, int64_t kept) {
  const int64_t half = 4 * bytes / kept;
  return ceil_div(height * tile_pitch(width) + half, 2 * half) * 2 * half - half;
}

// bytes, kept: sizes of an element in global and in shared memory.
inline PlanePlan plan_planes(const CrossArguments& c, int64_t bytes, int64_t kept, GpuLimits limits) {
  PlanePlan plan{};
  PlaneArguments& a = plan.arguments;
  static_cast<CrossArguments&>(a) = c;
  a.image_in_rows = !along_steps(c.image);
  const int64_t sector = kSectorBytes / bytes, images = c.batch * (c.shared_image ? 1 : c.routes);
  int64_t channels = a.image_in_rows ? minimum(sector, c.channels) : 1, height = c.height, width = c.width;
  const auto plane = [&](int64_t rows, int64_t columns) { return tile_plane(rows, columns, bytes, kept); };
  const auto fits = [&](int64_t most) {
    return channels * plane(height, width) * kept <= most && channels * height * width <= kMostTileElements;
  };
  const auto blocks = [&](int64_t group) {
    return images * ceil_div(c.channels, group) * ceil_div(c.height, height) * ceil_div(c.width, width);
  };
  const auto too_few = [&](int64_t group) { return blocks(group) < kBlocksEach * limits.multiprocessors; };
  // Splitting between sectors is free.
  const bool rows_whole = c.width * bytes % kSectorBytes == 0, columns_whole = c.height * bytes % kSectorBytes == 0;
  const auto most = [&](int64_t other) {
    return maximum(sector, round_down(kTileBytes / (channels * (other + 2) * kept), sector));
  };
  if (!fits(kTileBytes) && columns_whole && most(width) < height) height = most(width);
  if (!fits(kTileBytes) && rows_whole && most(height) < width) width = most(height);
  if (!fits(limits.shared_bytes)) {  // squares, which split sectors
    const int64_t all = minimum(kCutBytes, limits.shared_bytes);
    int64_t side = sector;
    while (channels * plane(2 * side, 2 * side) * kept <= all) side *= 2;
    height = minimum(c.height, side);
    width = minimum(c.width, side);
  }
  const auto tile_bytes = [&] { return channels * height * width * bytes; };
  const auto halve = [&](int64_t& size, bool between_sectors) {
    while (between_sectors && size > sector && too_few(channels) && tile_bytes() > kLeastTileBytes / 2) {
      size = ceil_div(size, 2 * sector) * sector;
    }
  };
  halve(height, columns_whole);
  halve(width, rows_whole);
  while (2 * tile_bytes() <= kLeastTileBytes && 2 * channels <= round_down(c.channels + sector - 1, sector) &&
         (tile_bytes() % kSectorBytes != 0 || !too_few(2 * channels))) {
    channels *= 2;
  }
  a.tile_channels = static_cast<int32_t>(channels);
  a.tile_height = static_cast<int32_t>(height);
  a.tile_width = static_cast<int32_t>(width);
  a.down = static_cast<int32_t>(ceil_div(c.height, height));
  a.across = static_cast<int32_t>(ceil_div(c.width, width));
  a.groups = ceil_div(c.channels, channels);
  a.pitch = static_cast<int32_t>(tile_pitch(width));
  a.plane = static_cast<int32_t>(plane(height, width));
  a.image_in_vectors = a.image_in_rows && rows_in_vectors(c.image, c.channels | channels, bytes);
  plan.blocks = blocks(channels);
  plan.shared_bytes = channels * a.plane * kept;
  plan.threads = plan.shared_bytes > 64 * 1024 ? 1024 : plan.shared_bytes > 32 * 1024 ? 512 : tile_bytes() > 4096 ? 256 : 128;
  return plan;
}

struct RowPlan {
  RowArguments arguments;
  int64_t blocks, shared_bytes;
  bool turned, in_vectors;
};

constexpr int64_t kTurnedPixels = 64, kTurnedBytes = 128;  // pixels of a tile, and bytes of a pixel's channels

inline RowPlan plan_rows(const CrossArguments& c, int64_t bytes) {
  RowPlan plan{};
  RowArguments& a = plan.arguments;
  static_cast<CrossArguments&>(a) = c;
  plan.turned = along_steps(c.image);
  plan.in_vectors = rows_in_vectors(c.sequences, c.channels, bytes) && (plan.turned || rows_in_vectors(c.image, c.channels, bytes));
  const int64_t vector = plan.in_vectors ? 16 / bytes : 1;
  int64_t pixels, channels;
  if (plan.turned) {
    const int64_t sector = kSectorBytes / bytes;
    channels = kTurnedBytes / bytes;
    pixels = ceil_div(ceil_div(c.length, ceil_div(c.length, kTurnedPixels)), sector) * sector;
  } else {
    channels = minimum(ceil_div(c.channels, vector), kRowThreads) * vector;
    pixels = kRowThreads * vector / channels;
  }
  a.tile_pixels = static_cast<int32_t>(minimum(pixels, c.length));
  a.tile_channels = static_cast<int32_t>(channels);
  a.tiles = ceil_div(c.length, a.tile_pixels);
  a.groups = ceil_div(c.channels, channels);
  a.pitch = static_cast<int32_t>(tile_pitch(a.tile_pixels));
  plan.blocks = c.batch * (c.shared_image ? 1 : c.routes) * a.tiles * a.groups;
  plan.shared_bytes = plan.turned ? channels * a.pitch * bytes : 0;
  return plan;
}

struct TablePlan {
  TableArguments arguments;
  int64_t plane_blocks, tile_blocks;  // plane_blocks: 0 if planes are not used
  int64_t plane_bytes, tile_bytes;    // shared memory
};

constexpr int64_t kPlaneBytes = 64 * 1024;  // three blocks on a multiprocessor with 200 KiB
constexpr int kPlanes = 4;

// tile_images: images of the tile kernels, which read each image once per route.
inline TablePlan plan_table(const CrossArguments& c, int64_t kept, int64_t tile_images) {
  TablePlan plan{};
  TableArguments& a = plan.arguments;
  static_cast<CrossArguments&>(a) = c;
  a.image_along_steps = along_steps(c.image);
  plan.tile_blocks = c.batch * tile_images * ceil_div(c.length, kTile) * ceil_div(c.channels, kTile);
  plan.tile_bytes = kTile * (kTile + 1) * kept;
  if (c.image.stride[2] != 1 || c.sequences.stride[2] != 1) return plan;
  a.planes = static_cast<int32_t>(minimum(kPlaneBytes / (c.length * kept), kPlanes));
  if (a.planes == 0) return plan;
  plan.plane_blocks = c.batch * (c.shared_image ? 1 : c.routes) * ceil_div(c.channels, a.planes);
  plan.plane_bytes = a.planes * c.length * kept;
  return plan;
}

}  // namespace gpu
}  // namespace vmddpm
