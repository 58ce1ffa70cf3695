// Memory-bound copies: the baseline instruction set is as fast as any.
#include "cross_scan.h"

#include "../common/tile.h"

namespace vmddpm {
namespace {

constexpr int64_t kTile = 64;  // steps x channels at a time: either side's cache lines are used whole

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
void copy_tile(const CrossScanParams& p, int64_t b, int64_t k, int64_t step, int64_t channel) {
  const int64_t steps = smaller(kTile, p.length - step), channels = smaller(kTile, p.channels - channel);
  const int32_t* pixels = p.table + k * p.length + step;
  const View &image = p.image, &out = p.sequences;
  const T* from = static_cast<const T*>(image.data) + origin(image, b, k, channel);
  T* to = static_cast<T*>(out.data) + origin(out, b, k, channel) + step * out.stride[2];
  if (out.stride[3] == 1) {
    for (int64_t l = 0; l < steps; ++l) {
      const T* row = from + pixels[l] * image.stride[2];
      for (int64_t c = 0; c < channels; ++c) to[l * out.stride[2] + c] = row[c * image.stride[3]];
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t l = 0; l < steps; ++l) {
        to[c * out.stride[3] + l * out.stride[2]] = from[c * image.stride[3] + pixels[l] * image.stride[2]];
      }
    }
  }
}

template <typename T>
void copy_all(const CrossScanParams& p) {
  const int64_t step_tiles = (p.length + kTile - 1) / kTile, channel_tiles = (p.channels + kTile - 1) / kTile;
#pragma omp parallel for collapse(2) schedule(static) num_threads(p.threads)
  for (int64_t sequence = 0; sequence < p.batch * p.routes; ++sequence) {
    for (int64_t tile = 0; tile < step_tiles * channel_tiles; ++tile) {
      copy_tile<T>(p, sequence / p.routes, sequence % p.routes, tile / channel_tiles * kTile,
                   tile % channel_tiles * kTile);
    }
  }
}

template <typename T>
void merge_all(const CrossScanParams& p) {
  const int64_t channel_tiles = (p.channels + kTile - 1) / kTile;
  // One owner for a pixel's sum over the routes: the order of the additions is fixed.
#pragma omp parallel for collapse(2) schedule(static) num_threads(p.threads)
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t tile = 0; tile < channel_tiles; ++tile) {
      T rows[kTile * kTile];
      const int64_t channel = tile * kTile, channels = smaller(kTile, p.channels - channel);
      for (int64_t k = 0; k < p.routes; ++k) {
        for (int64_t step = 0; step < p.length; step += kTile) {
          const int64_t steps = smaller(kTile, p.length - step);
          load_tile<T>(p.sequences, b, k, Steps{nullptr, step, steps}, channel, channels, kTile, rows);
          const Steps pixels{p.table + k * p.length, step, steps};
          store_tile<T>(p.image, b, k, pixels, channel, channels, kTile, rows, p.sum && k > 0);
        }
      }
    }
  }
}

}  // namespace

void cross_scan_cpu(const CrossScanParams& p) {
  switch (p.image.dtype) {
    case DType::f64: return copy_all<uint64_t>(p);
    case DType::f32: return copy_all<uint32_t>(p);
    case DType::f16:
    case DType::bf16: return copy_all<uint16_t>(p);
  }
}

void cross_merge_cpu(const CrossScanParams& p) {
  return p.sequences.dtype == DType::f64 ? merge_all<double>(p) : merge_all<float>(p);
}

}  // namespace vmddpm
