// Tiles on a GPU: the next kSteps steps of a strided tensor of any layout and type, on their way through shared memory.
//
//   global memory --asynchronous copies, kStages ahead--> raw tile --decode--> tile of the accumulation's type
//   tile --store_tile--> global memory
//
// The only place where visit orders, layouts and half precision are dealt with: the recurrences see tiles [step][column].
// A tensor whose columns are contiguous (channel-last) is read along them, one whose steps are (channel-first) along
// those; the raw tile has the same order, and decoding transposes it on chip.
#pragma once
#include <gpu.h>

#include "tensor.h"

namespace vmddpm {
namespace gpu {

constexpr int kSteps = 16;  // of a tile
constexpr int kStages = 3;  // tiles in flight or in use

// A decoded tile of channels is a block of [kSteps][kPitch] for every 32 channels: odd rows, so that lanes along steps
// meet no bank twice, and the same distance from step to step whatever the width.
constexpr int kPitch = kWarp + 1;
constexpr int kTileSize = kSteps * kPitch;
VMDDPM_CONSTANT int place_in_tile(int t, int c) { return (c / kWarp * kSteps + t) * kPitch + c % kWarp; }

// How a tensor's tiles are fetched: 16 bytes at a time along the columns or along the steps, or element by element.
enum class Fetch : int32_t { rows, columns, elements };

struct Input {
  View view;
  int32_t log2_size;   // of an element, bytes
  Fetch fetch;
  bool along_steps;    // the raw tile is [column][step]
};

struct Output {
  View view;
  bool along_steps;
};

// The steps of one tile: `pixels` (in shared memory) says where each stands, or they stand at first, first + 1, ...
struct TileSteps {
  const int32_t* pixels;
  int64_t first;
  int count;
  VMDDPM_DEVICE int64_t pixel(int t) const { return pixels ? pixels[t] : first + t; }
};

inline int log2_size(DType dtype) { return dtype == DType::f64 ? 3 : dtype == DType::f32 ? 2 : 1; }

inline int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }

// sizes: of the four axes of the view; width: columns of a tile.
inline Input make_input(View view, const int64_t (&sizes)[4], int width, bool has_table) {
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] == 1) view.stride[i] = 0;
  }
  Input in{view, log2_size(view.dtype), Fetch::elements, false};
  const auto aligned = [&](int64_t elements) { return (elements << in.log2_size) % 16 == 0; };
  const bool base = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && aligned(view.stride[0]) && aligned(view.stride[1]);
  if (base && view.stride[3] == 1 && aligned(view.stride[2]) && aligned(width)) {
    in.fetch = Fetch::rows;
  } else if (base && view.stride[2] == 1 && aligned(view.stride[3]) && !has_table) {
    in.fetch = Fetch::columns;
    in.along_steps = true;
  } else {
    in.along_steps = magnitude(view.stride[3]) > magnitude(view.stride[2]) && sizes[3] > 1;
  }
  return in;
}

inline Output make_output(View view, const int64_t (&sizes)[4]) {
  return {view, sizes[3] > 1 && magnitude(view.stride[3]) > magnitude(view.stride[2])};
}

// Elements from the start of the tensor to (batch, route, 0, column).
VMDDPM_DEVICE int64_t origin(const View& view, int64_t batch, int64_t route, int64_t column) {
  return batch * view.stride[0] + route * view.stride[1] + column * view.stride[3];
}

VMDDPM_DEVICE int clamp_bytes(int bytes) { return bytes < 0 ? 0 : bytes > 16 ? 16 : bytes; }

// The whole block starts copying view[batch, route, pixel(t), column + c], t < count and c < valid, to a raw tile of
// 1 << log2_width columns.
VMDDPM_DEVICE void stage_tile(const Input& in, int64_t start, const TileSteps& steps, int valid, int log2_width, char* raw) {
  const int size = in.log2_size;
  const char* from = static_cast<const char*>(in.view.data) + (start << size);
  if (in.fetch == Fetch::rows) {
    const int log2_chunks = log2_width + size - 4;
#pragma unroll 1
    for (int i = opaque(thread()); i < steps.count << log2_chunks; i += threads()) {
      const int t = i >> log2_chunks, byte = (i - (t << log2_chunks)) << 4;
      const int bytes = clamp_bytes((valid << size) - byte);
      const char* row = from + ((steps.pixel(t) * in.view.stride[2]) << size) + byte;
      copy_async<16>(raw + (i << 4), bytes > 0 ? row : from, bytes);
    }
  } else if (in.fetch == Fetch::columns) {
    static_assert(kSteps == 16, "a column of a tile is as many 16-byte chunks as an element has bytes");
#pragma unroll 1
    for (int i = opaque(thread()); i < valid << size; i += threads()) {
      const int c = i >> size, byte = (i - (c << size)) << 4;
      const int bytes = clamp_bytes((steps.count << size) - byte);
      const char* column = from + ((c * in.view.stride[3] + steps.first) << size) + byte;
      copy_async<16>(raw + (i << 4), bytes > 0 ? column : from, bytes);
    }
  } else {
#pragma unroll 1
    for (int i = opaque(thread()); i < kSteps << log2_width; i += threads()) {
      const int t = in.along_steps ? i % kSteps : i >> log2_width;
      const int c = in.along_steps ? i / kSteps : i - (t << log2_width);
      if (t >= steps.count || c >= valid) continue;
      const char* element = from + ((steps.pixel(t) * in.view.stride[2] + c * in.view.stride[3]) << size);
      char* to = raw + (i << size);
      if (size == 3) {
        copy_async<8>(to, element, 8);
      } else if (size == 2) {
        copy_async<4>(to, element, 4);
      } else {
        *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(element);
      }
    }
  }
}

// The elements of a tile of 1 << log2_width columns that fall to this thread: neighbouring threads take neighbours in
// memory, and a thread goes on along the other axis. At least four of them where the columns are channels, so loops over
// those handle four at once: one's latency hides behind the others'.
constexpr int kAtOnce = 4;

struct Cells {
  int t, c, dt, dc;
  VMDDPM_DEVICE Cells(bool along_steps, int log2_width) {
    const int first = opaque(thread());
    t = along_steps ? first % kSteps : first >> log2_width;
    c = along_steps ? first / kSteps : first & ((1 << log2_width) - 1);
    dt = along_steps ? 0 : threads() >> log2_width;
    dc = along_steps ? threads() / kSteps : 0;
  }
  VMDDPM_DEVICE bool inside(int log2_width) const { return t < kSteps && c < 1 << log2_width; }
  VMDDPM_DEVICE void next() {
    t += dt;
    c += dc;
  }
};

template <typename Acc, typename Element, typename Transform>
VMDDPM_DEVICE void decode_channels_as(const Input& in, const char* raw, int count, int valid, int log2_width, Acc* tile,
                                      Transform transform) {
  const Element* elements = reinterpret_cast<const Element*>(raw) + opaque(thread());
  Cells cell(in.along_steps, log2_width);
#pragma unroll 1
  for (; cell.inside(log2_width); elements += kAtOnce * threads()) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j, cell.next()) {
      const Acc value = transform(static_cast<Acc>(widen(elements[j * threads()])), cell.c);
      tile[place_in_tile(cell.t, cell.c)] = cell.t < count && cell.c < valid ? value : Acc(0);
    }
  }
}

template <typename Acc, typename Element>
VMDDPM_DEVICE void decode_states_as(const Input& in, const char* raw, int count, int valid, int log2_width, int row,
                                    Acc* tile) {
  const Element* elements = reinterpret_cast<const Element*>(raw);
#pragma unroll 1
  for (int i = opaque(thread()); i < kSteps << log2_width; i += threads()) {
    const int t = in.along_steps ? i % kSteps : i >> log2_width;
    const int n = in.along_steps ? i / kSteps : i - (t << log2_width);
    tile[t * row + n] = t < count && n < valid ? static_cast<Acc>(widen(elements[i])) : Acc(0);
  }
}

// Calls run(element) with a value of the type the input's elements have. In double everything comes in as double.
template <typename Acc, typename Run>
VMDDPM_DEVICE void with_element_type(DType dtype, Run run) {
  if constexpr (sizeof(Acc) == 8) {
    run(double{});
  } else if (dtype == DType::f16) {
    run(Half{});
  } else if (dtype == DType::bf16) {
    run(BFloat16{});
  } else {
    run(float{});
  }
}

// A tile of channels, transform(value, column), zero beyond the last step and channel.
template <typename Acc, typename Transform>
VMDDPM_DEVICE void decode_channels(const Input& in, const char* raw, int count, int valid, int log2_width, Acc* tile,
                                   Transform transform) {
  with_element_type<Acc>(in.view.dtype, [&](auto element) {
    decode_channels_as<Acc, decltype(element)>(in, raw, count, valid, log2_width, tile, transform);
  });
}

// A tile of B or C in rows of `row`, zero beyond the last step and state.
template <typename Acc>
VMDDPM_DEVICE void decode_states(const Input& in, const char* raw, int count, int valid, int log2_width, int row, Acc* tile) {
  with_element_type<Acc>(in.view.dtype, [&](auto element) {
    decode_states_as<Acc, decltype(element)>(in, raw, count, valid, log2_width, row, tile);
  });
}

template <typename Acc, typename Element, typename Value>
VMDDPM_DEVICE void store_as(const Output& out, int64_t start, const TileSteps& steps, int valid, int log2_width, bool add,
                            Value value) {
  Element* to = static_cast<Element*>(out.view.data) + start;
  Cells cell(out.along_steps, log2_width);
#pragma unroll 1
  while (cell.inside(log2_width)) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j, cell.next()) {
      if (cell.t >= steps.count || cell.c >= valid) continue;
      Element& target = to[steps.pixel(cell.t) * out.view.stride[2] + cell.c * out.view.stride[3]];
      Acc result = value(place_in_tile(cell.t, cell.c), cell.c);
      if (add) result += static_cast<Acc>(widen(target));
      narrow(result, target);
    }
  }
}

// view[batch, route, pixel(t), column + c] = value(place_in_tile(t, c), c), or += it. What is added to must be of the
// accumulation's type.
template <typename Acc, typename Value>
VMDDPM_DEVICE void store_tile(const Output& out, int64_t start, const TileSteps& steps, int valid, int log2_width, bool add,
                              Value value) {
  with_element_type<Acc>(out.view.dtype, [&](auto element) {
    store_as<Acc, decltype(element)>(out, start, steps, valid, log2_width, add, value);
  });
}

// n neighbouring values, moved in one access.
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
