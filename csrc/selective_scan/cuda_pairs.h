// Loads and stores of two neighbouring channels per lane.
#pragma once
#include "../common/gpu_stream.h"

namespace vmddpm {
namespace gpu {

template <typename Acc>
using Pair = Pack<Acc, 2>;

// A tensor read as two channels per lane.
struct PairStream {
  Stream at;
  bool pairs;      // an even channel and the next are one aligned access
  bool by_steps;   // steps are closer in memory than channels: neighbouring lanes take neighbouring steps
};

// `wide`: the tensor has the accumulation's type, where others may be narrower.
inline PairStream make_pair_stream(const View& view, const int64_t (&sizes)[4], bool wide) {
  PairStream s{make_stream(view, sizes, false, wide), false, false};
  const int64_t pair = int64_t{2} << log2_size(view.dtype);
  const auto aligned = [&](int64_t bytes) { return bytes % pair == 0; };
  s.pairs = s.at.column * 2 == pair && sizes[3] % 2 == 0 && aligned(reinterpret_cast<intptr_t>(view.data)) &&
            aligned(s.at.batch) && aligned(s.at.route) && aligned(s.at.step);
  s.by_steps = sizes[3] > 1 && magnitude(s.at.column) > magnitude(s.at.step);
  return s;
}

// Two channels' elements as loaded; a pair of two-byte elements is packed in the first.
template <typename E>
struct RawPair {
  Raw<E> raw[2];
};

// The address of the channel `column` after a block's first.
template <bool kPairs>
VMDDPM_DEVICE char* lane_at(const PairStream& s, char* block, int column) {
  if constexpr (kPairs) return opaque(block + wide_product(column, static_cast<int32_t>(s.at.column)));  // one element
  return opaque(block + column * s.at.column);
}

// Loads a lane's two channels, the first at `lane`; with only one existing channel (`count`), loads that twice.
template <bool kPairs, typename E>
VMDDPM_DEVICE void fetch_pair(const PairStream& s, const char* lane, int32_t pixel, int count, RawPair<E>& pair) {
  const char* from = lane + wide_product(pixel, s.at.step);
  if constexpr (!kPairs) {
    pair.raw[0] = load_raw<E>(from);
    pair.raw[1] = load_raw<E>(from + (count > 1 ? s.at.column : 0));
  } else if constexpr (sizeof(E) == 2) {
    pair.raw[0] = *reinterpret_cast<const uint32_t*>(from);
  } else {
    load_row(reinterpret_cast<const E*>(from), pair.raw);
  }
}

template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void values_of(const RawPair<E>& pair, Acc (&values)[2]) {
  values[0] = widen_raw<E>(pair.raw[0]);
  if constexpr (kPairs && sizeof(E) == 2) {
    values[1] = widen_raw<E>(pair.raw[0] >> 16);
  } else {
    values[1] = widen_raw<E>(pair.raw[1]);
  }
}

// Stores the first `count` of two values.
template <bool kPairs, typename E, typename Acc>
VMDDPM_DEVICE void store_pair(const PairStream& s, char* lane, int32_t pixel, int count, Put how, const Acc (&values)[2]) {
  char* to = lane + wide_product(pixel, s.at.step);
  stored_as<E, Acc>(s.at.wide, how, [&](Put how, auto element) {
    using T = decltype(element);
    if constexpr (kPairs) {
      put_row(how, values, reinterpret_cast<T*>(to));
    } else {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j < count) put(how, values[j], reinterpret_cast<T*>(to + j * s.at.column));
      }
    }
  });
}

}  // namespace gpu
}  // namespace vmddpm
