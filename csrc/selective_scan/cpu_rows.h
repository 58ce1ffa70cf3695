// Shared by the scans of a single state. Tiles would cost as much as so short a recurrence, so several registers of
// channels take a step together, and tensors are read and written in place, row by row.
#pragma once
#include "cpu_common.h"

namespace {

// Prefetch distance in rows. About 32 registers ahead was fastest; never fewer than two rows.
inline int64_t prefetch_distance(int64_t blocks) {
  constexpr int64_t kRegistersAhead = 32, kLeastRows = 2;
  return blocks * kLeastRows < kRegistersAhead ? kRegistersAhead / blocks : kLeastRows;
}

// The end of the blocks that use all lanes, at most `end`: rows are made of whole blocks.
inline int64_t whole_blocks_end(const ScanParams& p, const ScanPlan& plan, int64_t end) {
  return minimum(end, p.channels / plan.lanes);
}

// One row of channels per pixel.
template <typename Element>
struct PixelRows {
  Element* base;
  int64_t stride;
  Element* at(int64_t pixel) const { return base + pixel * stride; }
};

template <typename Element>
PixelRows<Element> pixel_rows(Element* data, const View& view, int64_t batch, int64_t route, int64_t column) {
  return {data + origin(view, batch, route, column), view.stride[2]};
}

template <typename Element>
PixelRows<const char> bytes_of(PixelRows<Element> rows) {
  return {reinterpret_cast<const char*>(rows.base), rows.stride * static_cast<int64_t>(sizeof(Element))};
}

// Calls f(an input element, a result element) to pass the types on; returns false for unsupported types.
template <typename T, typename Function>
bool with_row_types(DType input, DType result, Function f) {
  if constexpr (sizeof(T) == 8) {
    if (input != DType::f64 || result != DType::f64) return false;
    f(T(), T());
  } else {
    if (input == DType::f64 || (result != input && result != DType::f32)) return false;
    if (input == DType::f32) f(T(), T());
    if (input == DType::f16) result == input ? f(Half(), Half()) : f(Half(), T());
    if (input == DType::bf16) result == input ? f(BFloat16(), BFloat16()) : f(BFloat16(), T());
  }
  return true;
}

}  // namespace
