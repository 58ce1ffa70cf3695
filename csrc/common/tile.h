// Tiles: the next steps of one register's worth of channels, copied between a strided tensor of any layout and type
// and a small contiguous array in the type of the accumulation. The only place where visit orders, layouts and half
// precision are dealt with; the recurrences see nothing but tiles.
#pragma once
#include "simd.h"
#include "tensor.h"

namespace {

using vmddpm::DType;
using vmddpm::View;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }
inline float widen(Half v) {
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fff) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;  // moves the exponent's bias, subnormals included
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | static_cast<uint32_t>(v.bits & 0x8000) << 16);
}

// Where steps first .. first + steps of one route lie: table[first + i], or first + i itself without a table.
struct Steps {
  const int32_t* table;
  int64_t first;
  int64_t count;
  int64_t pixel(int64_t i) const { return table ? table[first + i] : first + i; }
};

// The address of element (batch, route, 0, column), in elements from the start.
inline int64_t origin(const View& view, int64_t batch, int64_t route, int64_t column) {
  return batch * view.stride[0] + route * view.stride[1] + column * view.stride[3];
}

template <typename T, typename Source>
void load_rows(const Source* source, const View& view, const Steps& steps, int64_t columns, int64_t width, T* rows) {
  if (view.stride[3] == 1) {
    for (int64_t i = 0; i < steps.count; ++i) {
      const Source* from = source + steps.pixel(i) * view.stride[2];
      T* to = rows + i * width;
      for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<T>(widen(from[c]));
    }
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      const Source* from = source + c * view.stride[3];
      for (int64_t i = 0; i < steps.count; ++i) {
        rows[i * width + c] = static_cast<T>(widen(from[steps.pixel(i) * view.stride[2]]));
      }
    }
  }
}

// rows[i][c] = view[batch, route, pixel(i), column + c] for c < columns; the other c < width stay as they are.
template <typename T>
void load_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column, int64_t columns,
               int64_t width, T* rows) {
  const int64_t offset = origin(view, batch, route, column);
  switch (view.dtype) {
    case DType::f32: return load_rows(static_cast<const float*>(view.data) + offset, view, steps, columns, width, rows);
    case DType::f64: return load_rows(static_cast<const double*>(view.data) + offset, view, steps, columns, width, rows);
    case DType::f16: return load_rows(static_cast<const Half*>(view.data) + offset, view, steps, columns, width, rows);
    case DType::bf16: return load_rows(static_cast<const BFloat16*>(view.data) + offset, view, steps, columns, width, rows);
  }
}

// The reverse, for results, which are always of type T; `add` accumulates instead of overwriting.
template <typename T>
void store_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column, int64_t columns,
                int64_t width, const T* rows, bool add) {
  T* target = static_cast<T*>(view.data) + origin(view, batch, route, column);
  if (view.stride[3] == 1) {
    for (int64_t i = 0; i < steps.count; ++i) {
      T* to = target + steps.pixel(i) * view.stride[2];
      const T* from = rows + i * width;
      if (add) {
        for (int64_t c = 0; c < columns; ++c) to[c] += from[c];
      } else {
        for (int64_t c = 0; c < columns; ++c) to[c] = from[c];
      }
    }
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      T* to = target + c * view.stride[3];
      for (int64_t i = 0; i < steps.count; ++i) {
        T& element = to[steps.pixel(i) * view.stride[2]];
        element = add ? element + rows[i * width + c] : rows[i * width + c];
      }
    }
  }
}

}  // namespace
