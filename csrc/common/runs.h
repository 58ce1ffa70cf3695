// Copies runs (equally spaced elements) between a tensor of any type and an array of the accumulation's type.
#pragma once
#include "lanes.h"
#include "tensor.h"

namespace {

// to[i] = the element at offset + i * stride.
template <typename T>
inline void gather(const vmddpm::View& view, int64_t offset, int64_t stride, int64_t count, T* to) {
  with_type(view, [&](const auto* data) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(widen(data[offset + i * stride]));
  });
}

template <typename T>
inline void scatter(const T* from, const vmddpm::View& view, int64_t offset, int64_t stride, int64_t count) {
  with_type(view, [&](auto* data) {
    for (int64_t i = 0; i < count; ++i) narrow(from[i], data[offset + i * stride]);
  });
}

// Loads `count` elements, at most a register, and zeros for the rest; store_some is the inverse.
template <typename T, typename Source>
VMDDPM_INLINE Vec<T> load_some(const Source* from, int64_t count) {
  if (count >= kLanes<T>) return load_lanes<T>(from);
  Source part[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load_lanes<T>(static_cast<const Source*>(part));
}

template <typename T, typename Target>
VMDDPM_INLINE void store_some(Target* to, Vec<T> v, int64_t count) {
  if (count >= kLanes<T>) return store_lanes<T>(to, v);
  Target part[kLanes<T>];
  store_lanes<T>(part, v);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

}  // namespace
