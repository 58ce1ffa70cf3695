// Cross scan and merge on a GPU: each one gather or one scatter through the table, whatever the routes and permutations.
//
// Channel-first sequences of an image that fits into shared memory go through planes: a channel is read once, in order,
// and every route written in order from there, so that even a random permutation costs no scattered access to memory
// (the merge the other way round). Everything else goes through tiles of 32 steps by 32 channels, turned on chip where
// the two sides have different layouts; rows of channels are whole lines of memory in any order.
#include "../common/gpu_tile.h"
#include "cross_scan.h"

namespace vmddpm {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;
constexpr int kPerThread = kTile * kTile / kThreads;
constexpr int64_t kPlaneBytes = 64 * 1024;  // of shared memory: three blocks a multiprocessor on what has 200 KiB
constexpr int kPlanes = 4;                  // channels of a block, which share what is read of the table

struct CrossArguments {
  int64_t batch, routes, length, channels;
  const int32_t* table;
  const int32_t* inverse;
  View image, sequences;
  bool image_along_steps, sequences_along_steps;
  bool sum;          // routes of one image: read once, or summed
  int32_t planes;    // channels of a block of the plane kernels
};

// Element i of a 32 x 32 tile for this thread, lanes along steps or along channels.
struct Cell {
  int step, channel;
  VMDDPM_DEVICE Cell(int i, bool along_steps) {
    const int index = thread() + i * kThreads, fast = index % kTile, slow = index / kTile;
    step = along_steps ? fast : slow;
    channel = along_steps ? slow : fast;
  }
};

// A block's tile: first step and channel, batch and route.
struct TilePlace {
  int64_t batch, route, step, channel;
  VMDDPM_DEVICE TilePlace(const CrossArguments& a, int64_t routes) {
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
VMDDPM_KERNEL(kThreads, 4) scan_tiles(VMDDPM_ARGUMENTS(CrossArguments) a) {
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
    const Cell cell(i, a.sequences_along_steps);
    const int64_t step = at.step + cell.step, channel = at.channel + cell.channel;
    if (step >= a.length || channel >= a.channels) continue;
    static_cast<Bits*>(a.sequences.data)[element(a.sequences, at.batch, at.route, step, channel)] = tile[cell.step][cell.channel];
  }
}

template <typename Bits>
VMDDPM_KERNEL(kThreads, 3) scan_planes(VMDDPM_ARGUMENTS(CrossArguments) a) {
  Bits* planes = reinterpret_cast<Bits*>(shared());
  const int64_t groups = (a.channels + a.planes - 1) / a.planes;
  const int64_t first = block() % groups * a.planes, images = a.sum ? 1 : a.routes;
  const int64_t image = block() / groups % images, batch = block() / groups / images;
  const int count = static_cast<int>(a.channels - first < a.planes ? a.channels - first : a.planes);
  for (int c = 0; c < count; ++c) {
    const Bits* from = static_cast<const Bits*>(a.image.data) + origin(a.image, batch, image, first + c);
    for (int64_t p = thread(); p < a.length; p += kThreads) planes[c * a.length + p] = from[p];
  }
  barrier();
  const int64_t last_route = a.sum ? a.routes : image + 1;
  for (int64_t route = image; route < last_route; ++route) {
    Bits* to = static_cast<Bits*>(a.sequences.data) + origin(a.sequences, batch, route, first);
    for (int64_t step = thread(); step < a.length; step += kThreads) {
      const int64_t pixel = a.table[route * a.length + step];
      for (int c = 0; c < count; ++c) to[c * a.sequences.stride[3] + step] = planes[c * a.length + pixel];
    }
  }
}

// inverse[k][table[k][l]] = l.
VMDDPM_KERNEL(kThreads, 4) invert_table(VMDDPM_ARGUMENTS(CrossArguments) a) {
  const int64_t index = block() * kThreads + thread();
  if (index >= a.routes * a.length) return;
  const int64_t route = index / a.length;
  const_cast<int32_t*>(a.inverse)[route * a.length + a.table[index]] = static_cast<int32_t>(index - route * a.length);
}

template <typename Acc, typename Element>
VMDDPM_KERNEL(kThreads, 2) merge_tiles(VMDDPM_ARGUMENTS(CrossArguments) a) {
  Acc(*tile)[kTile + 1] = reinterpret_cast<Acc(*)[kTile + 1]>(shared());
  const TilePlace at(a, a.sum ? 1 : a.routes);
  Acc sums[kPerThread] = {};
  for (int64_t k = at.route; k < (a.sum ? a.routes : at.route + 1); ++k) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Cell cell(i, a.sequences_along_steps);
      const int64_t pixel = at.step + cell.step, channel = at.channel + cell.channel;
      if (pixel >= a.length || channel >= a.channels) continue;
      const int64_t step = a.inverse[k * a.length + pixel];
      sums[i] += widen(static_cast<const Element*>(a.sequences.data)[element(a.sequences, at.batch, k, step, channel)]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const Cell cell(i, a.sequences_along_steps);
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
VMDDPM_KERNEL(kThreads, 3) merge_planes(VMDDPM_ARGUMENTS(CrossArguments) a) {
  Acc* planes = reinterpret_cast<Acc*>(shared());
  const int64_t groups = (a.channels + a.planes - 1) / a.planes;
  const int64_t first = block() % groups * a.planes, images = a.sum ? 1 : a.routes;
  const int64_t image = block() / groups % images, batch = block() / groups / images;
  const int count = static_cast<int>(a.channels - first < a.planes ? a.channels - first : a.planes);
  const int64_t last_route = a.sum ? a.routes : image + 1;
  for (int64_t route = image; route < last_route; ++route) {
    const Element* from = static_cast<const Element*>(a.sequences.data) + origin(a.sequences, batch, route, first);
    for (int64_t step = thread(); step < a.length; step += kThreads) {
      const int64_t pixel = a.table[route * a.length + step];
      for (int c = 0; c < count; ++c) {
        const Acc value = widen(from[c * a.sequences.stride[3] + step]);
        Acc& sum = planes[c * a.length + pixel];
        sum = route == image ? value : sum + value;
      }
    }
    barrier();  // a route visits every pixel once, the next one in another order
  }
  for (int c = 0; c < count; ++c) {
    Element* to = static_cast<Element*>(a.image.data) + origin(a.image, batch, image, first + c);
    for (int64_t p = thread(); p < a.length; p += kThreads) narrow(planes[c * a.length + p], to[p]);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

CrossArguments cross_arguments(const CrossScanParams& p) {
  CrossArguments a{p.batch, p.routes, p.length, p.channels, p.table, nullptr, p.image, p.sequences, false, false, p.sum, 0};
  a.image_along_steps = magnitude(p.image.stride[3]) > magnitude(p.image.stride[2]);
  a.sequences_along_steps = magnitude(p.sequences.stride[3]) > magnitude(p.sequences.stride[2]);
  return a;
}

int64_t tile_blocks(const CrossArguments& a, int64_t routes) {
  return a.batch * routes * ceil_div(a.length, kTile) * ceil_div(a.channels, kTile);
}

// Channels of a block of the plane kernels, 0 if they do not apply.
int32_t planes(const CrossArguments& a, int64_t element_bytes) {
  if (a.image.stride[2] != 1 || a.sequences.stride[2] != 1 || a.length == 0) return 0;
  const int64_t fit = kPlaneBytes / (a.length * element_bytes);
  return static_cast<int32_t>(fit < kPlanes ? fit : kPlanes);
}

int64_t plane_blocks(const CrossArguments& a) {
  return a.batch * (a.sum ? 1 : a.routes) * ceil_div(a.channels, a.planes);
}

template <typename Bits>
void scan_of(CrossArguments a, void* stream) {
  a.planes = planes(a, sizeof(Bits));
  if (a.planes > 0) {
    launch("cross_scan_planes", &scan_planes<Bits>, plane_blocks(a), kThreads, a.planes * a.length * int64_t{sizeof(Bits)},
           stream, a);
  } else {
    launch("cross_scan_tiles", &scan_tiles<Bits>, tile_blocks(a, a.routes), kThreads, kTile * (kTile + 1) * sizeof(Bits),
           stream, a);
  }
}

template <typename Acc, typename Element>
void merge_of(CrossArguments a, int32_t* inverse, void* stream) {
  a.planes = planes(a, sizeof(Acc));
  if (a.planes > 0) {
    launch("cross_merge_planes", &merge_planes<Acc, Element>, plane_blocks(a), kThreads,
           a.planes * a.length * int64_t{sizeof(Acc)}, stream, a);
    return;
  }
  a.inverse = inverse;
  launch("invert_table", &invert_table, ceil_div(a.routes * a.length, kThreads), kThreads, 0, stream, a);
  launch("cross_merge_tiles", &merge_tiles<Acc, Element>, tile_blocks(a, a.sum ? 1 : a.routes), kThreads,
         kTile * (kTile + 1) * sizeof(Acc), stream, a);
}

}  // namespace
}  // namespace gpu

void cross_scan_cuda(const CrossScanParams& p, int device, void* stream) {
  gpu::use_device(device);
  gpu::CrossArguments a = gpu::cross_arguments(p);
  a.sum = p.image.stride[1] == 0;
  switch (p.image.dtype) {
    case DType::f64: return gpu::scan_of<uint64_t>(a, stream);
    case DType::f32: return gpu::scan_of<uint32_t>(a, stream);
    case DType::f16:
    case DType::bf16: return gpu::scan_of<uint16_t>(a, stream);
  }
}

void cross_merge_cuda(const CrossScanParams& p, int32_t* inverse, int device, void* stream) {
  gpu::use_device(device);
  const gpu::CrossArguments a = gpu::cross_arguments(p);
  switch (p.sequences.dtype) {
    case DType::f64: return gpu::merge_of<double, double>(a, inverse, stream);
    case DType::f32: return gpu::merge_of<float, float>(a, inverse, stream);
    case DType::f16: return gpu::merge_of<float, gpu::Half>(a, inverse, stream);
    case DType::bf16: return gpu::merge_of<float, gpu::BFloat16>(a, inverse, stream);
  }
}

}  // namespace vmddpm
