// Offsets in tensors, and vector loads and stores, for GPU kernels.
#pragma once
#include <gpu.h>

#include "tensor.h"

namespace vmddpm {
namespace gpu {

constexpr int kAtOnce = 4;  // loads of a thread in flight at once, to hide their latency

inline int log2_size(DType dtype) { return dtype == DType::f64 ? 3 : dtype == DType::f32 ? 2 : 1; }

inline int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }

// The offset of element (batch, route, 0, column), in elements.
VMDDPM_DEVICE int64_t origin(const View& view, int64_t batch, int64_t route, int64_t column) {
  return batch * view.stride[0] + route * view.stride[1] + column * view.stride[3];
}

// n contiguous values, moved in one access.
template <typename T, int n>
struct alignas(sizeof(T) * n > 16 ? 16 : sizeof(T) * n) Pack {
  T value[n];
};

template <int n, typename T>
VMDDPM_DEVICE void load_row(const T* from, T (&values)[n]) {
  constexpr int width = static_cast<int>(16 / sizeof(T)) < n ? static_cast<int>(16 / sizeof(T)) : n;
#pragma unroll
  for (int i = 0; i < n; i += width) {
    const Pack<T, width> pack = *reinterpret_cast<const Pack<T, width>*>(from + i);
#pragma unroll
    for (int j = 0; j < width; ++j) values[i + j] = pack.value[j];
  }
}

template <int n, typename T>
VMDDPM_DEVICE void store_row(T* to, const T (&values)[n]) {
  constexpr int width = static_cast<int>(16 / sizeof(T)) < n ? static_cast<int>(16 / sizeof(T)) : n;
#pragma unroll
  for (int i = 0; i < n; i += width) {
    Pack<T, width> pack;
#pragma unroll
    for (int j = 0; j < width; ++j) pack.value[j] = values[i + j];
    *reinterpret_cast<Pack<T, width>*>(to + i) = pack;
  }
}

}  // namespace gpu
}  // namespace vmddpm
