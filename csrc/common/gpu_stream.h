// Loads and stores between a strided tensor in global memory and the registers of the lane that owns a channel.
//
// The lanes of a warp are neighbouring channels, so a warp reads a piece of a row at each step: whole sectors, for any
// visit order and alignment. A lane loads the steps of a group together, one group ahead of their use. A tensor whose
// steps are contiguous (channel-first) is read in vectors along the steps instead.
#pragma once
#include <gpu.h>

#include <stdexcept>
#include <type_traits>

#include "gpu_tile.h"

namespace vmddpm {
namespace gpu {

constexpr int kGroup = 4;  // steps per group

// A view (B, K, L, C) with strides in bytes.
struct Stream {
  char* data;
  int64_t batch, route, column;
  int32_t step;
  bool vectors;      // the steps of a group are contiguous and aligned
  bool wide;         // the tensor has the accumulation's type, where others may be narrower
};

// `groups`: whether steps are visited in order, without a table, so that groups may be read as vectors.
inline Stream make_stream(const View& view, const int64_t (&sizes)[4], bool groups, bool wide) {
  const int64_t size = 1 << log2_size(view.dtype);
  int64_t bytes[4];
  for (int i = 0; i < 4; ++i) bytes[i] = sizes[i] == 1 ? 0 : view.stride[i] * size;
  if (magnitude(bytes[2]) > INT32_MAX) {
    throw std::invalid_argument("two steps of a tensor are 2 GiB or more apart in memory: pass it .contiguous()");
  }
  Stream s{static_cast<char*>(view.data), bytes[0], bytes[1], bytes[3], static_cast<int32_t>(bytes[2]), false, wide};
  const int64_t vector = kGroup * size < 16 ? kGroup * size : 16;
  const auto aligned = [&](int64_t n) { return n % vector == 0; };
  s.vectors = groups && sizes[2] % kGroup == 0 && view.stride[2] == 1 && (view.stride[3] != 1 || sizes[3] == 1) &&
                  aligned(reinterpret_cast<intptr_t>(view.data)) && aligned(bytes[0]) && aligned(bytes[1]) &&
                  aligned(bytes[3]);
  return s;
}

VMDDPM_DEVICE char* lane_of(const Stream& s, int64_t batch, int64_t route, int64_t column) {
  return opaque(s.data + batch * s.batch + route * s.route + column * s.column);
}

// An element as loaded, two bytes in the lower half of a word: no conversion waits for the load before the value is
// used.
template <typename E>
using Raw = std::conditional_t<sizeof(E) == 2, uint32_t, E>;

template <typename E>
VMDDPM_DEVICE Raw<E> load_raw(const char* from) {
  if constexpr (sizeof(E) == 2) {
    return *reinterpret_cast<const uint16_t*>(from);
  } else {
    return *reinterpret_cast<const E*>(from);
  }
}

template <typename E>
VMDDPM_DEVICE auto widen_raw(Raw<E> raw) {
  if constexpr (sizeof(E) == 2) {
    const uint16_t bits = static_cast<uint16_t>(raw);
    E element;
    memcpy(&element, &bits, 2);
    return widen(element);
  } else {
    return widen(raw);
  }
}

// The elements of a lane's channel at the steps of a group. kVectors: they are contiguous, in one vector (see Stream).
template <typename E, bool kVectors>
struct Group {
  static constexpr int kWords = kVectors ? kGroup * sizeof(E) / sizeof(Raw<E>) : kGroup;
  Raw<E> raw[kWords];

  // Loads the elements at `pixels`, which are in shared memory.
  VMDDPM_DEVICE void fetch(const Stream& s, const char* lane, const int32_t* pixels) {
    if constexpr (kVectors) {
      load_row(reinterpret_cast<const Raw<E>*>(lane + static_cast<int64_t>(*pixels) * sizeof(E)), raw);
    } else {
      int32_t at[kGroup];
      load_row(pixels, at);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) raw[i] = load_raw<E>(lane + wide_product(at[i], s.step));
    }
  }

  VMDDPM_DEVICE auto value(int i) const {
    if constexpr (kWords == kGroup) {
      return widen_raw<E>(raw[i]);
    } else {
      return widen_raw<E>(i % 2 ? raw[i / 2] >> 16 : raw[i / 2]);
    }
  }
};

// How a value is stored: it overwrites, or is added atomically. Two values added to a zero give the same bits in either
// order.
enum class Put { set, add };

// Stores n values in one row. Put::add needs a target of the accumulation's type.
template <typename T, int n, typename Acc>
VMDDPM_DEVICE void put_row(Put how, const Acc (&values)[n], T* to) {
  if constexpr (std::is_same_v<T, Acc>) {
    if (how == Put::add) return atomic_add(to, values);
  }
  T results[n];
#pragma unroll
  for (int i = 0; i < n; ++i) narrow(values[i], results[i]);
  store_row(to, results);
}

template <typename T, typename Acc>
VMDDPM_DEVICE void put(Put how, Acc value, T* to) {
  const Acc values[1] = {value};
  put_row(how, values, to);
}

// Calls store(how, T()) with `how` as a constant and T = Acc if the tensor is `wide`, else E.
template <typename E, typename Acc, typename Store>
VMDDPM_DEVICE void stored_as(bool wide, Put how, Store store) {
  if constexpr (sizeof(E) < sizeof(Acc)) {
    if (!wide) return store(Put::set, E());
  }
  if (how == Put::add) return store(Put::add, Acc());
  store(Put::set, Acc());
}

// Stores the first `count` values in a lane's channel.
template <typename E, bool kVectors, typename Acc>
VMDDPM_DEVICE void store_group(const Stream& s, char* lane, const int32_t* pixels, int count, Put how,
                               const Acc (&values)[kGroup]) {
  stored_as<E, Acc>(s.wide, how, [&](Put how, auto element) {
    using T = decltype(element);
    if constexpr (kVectors) {
      if (count > 0) put_row(how, values, reinterpret_cast<T*>(lane + static_cast<int64_t>(*pixels) * sizeof(T)));
    } else {
      int32_t at[kGroup];
      load_row(pixels, at);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (i < count) put(how, values[i], reinterpret_cast<T*>(lane + wide_product(at[i], s.step)));
      }
    }
  });
}

}  // namespace gpu
}  // namespace vmddpm
