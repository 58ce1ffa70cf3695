// Tiles: a few steps of one register of channels, copied between a tensor of any type and layout and a contiguous array
// of the accumulation's type. Only this file handles visit orders and layouts; the recurrences read and write tiles.
#pragma once
#include <type_traits>

#include "lanes.h"
#include "tensor.h"

namespace {

using vmddpm::DType;
using vmddpm::View;

// The pixels of steps first .. first + count of one route: table[first + i], or first + i without a table.
struct Steps {
  const int32_t* table;
  int64_t first;
  int64_t count;
  int64_t pixel(int64_t i) const { return table ? table[first + i] : first + i; }
};

// The offset of element (batch, route, 0, column), in elements.
inline int64_t origin(const View& view, int64_t batch, int64_t route, int64_t column) {
  return batch * view.stride[0] + route * view.stride[1] + column * view.stride[3];
}

// Whether channels are contiguous, so that a step is a row of memory.
inline bool has_rows(const View& view) { return view.stride[3] == 1; }

// Whether steps are contiguous and visited in order, so that a channel is a row of memory and tiles are transposed.
inline bool has_columns(const View& view, const Steps& steps) { return view.stride[2] == 1 && !steps.table; }

template <typename T, typename Source>
void load_rows(const Source* source, const View& view, Steps steps, int64_t columns, int64_t width, T* rows) {
  const int64_t stride = view.stride[2];
  if (columns == kLanes<T>) {
    for (int64_t i = 0; i < steps.count; ++i) {
      store(rows + i * width, load_lanes<T>(source + steps.pixel(i) * stride));
    }
    return;
  }
  for (int64_t i = 0; i < steps.count; ++i) {
    const Source* from = source + steps.pixel(i) * stride;
    T* to = rows + i * width;
    int64_t c = 0;
    for (; c + kLanes<T> <= columns; c += kLanes<T>) store(to + c, load_lanes<T>(from + c));
    for (; c < columns; ++c) to[c] = static_cast<T>(widen(from[c]));
  }
}

template <typename T, typename Source>
void load_scattered(const Source* source, const View& view, Steps steps, int64_t columns, int64_t width, T* rows) {
  const int64_t stride = view.stride[2];
  for (int64_t c = 0; c < columns; ++c) {
    const Source* from = source + c * view.stride[3];
    for (int64_t i = 0; i < steps.count; ++i) {
      rows[i * width + c] = static_cast<T>(widen(from[steps.pixel(i) * stride]));
    }
  }
}

// Calls f(S) if whole sequences have S steps, fewer than lanes in a register, and follow each other without gaps.
template <typename T, typename Function>
bool with_short_sequences(const View& view, const Steps& steps, Function f) {
  if (view.stride[3] != steps.count || steps.first != 0) return false;
  const auto call_with = [&](auto count) {
    if constexpr (decltype(count)::value < kLanes<T>) {
      if (steps.count != decltype(count)::value) return false;
      f(count);
      return true;
    }
    return false;
  };
  return call_with(std::integral_constant<int, 2>()) || call_with(std::integral_constant<int, 4>()) ||
         call_with(std::integral_constant<int, 8>());
}

// Transposes squares of kLanes steps and channels; load_scattered copies the remainder.
template <typename T, typename Source>
void load_columns(const Source* source, const View& view, const Steps& steps, int64_t columns, int64_t width, T* rows) {
  constexpr int64_t W = kLanes<T>;
  const bool done = columns % W == 0 && with_short_sequences<T>(view, steps, [&](auto count) {
    constexpr int S = decltype(count)::value;
    for (int64_t c = 0; c < columns; c += W) {
      Vec<T> matrix[S];
      VMDDPM_UNROLL
      for (int i = 0; i < S; ++i) matrix[i] = load_lanes<T>(source + c * S + i * W);
      shuffle_stages<T, S, log2_of(W)>(matrix);
      VMDDPM_UNROLL
      for (int i = 0; i < S; ++i) store(rows + i * width + c, matrix[i]);
    }
  });
  if (done) return;
  const int64_t whole_steps = steps.count / W * W, whole_columns = columns / W * W;
  for (int64_t c = 0; c < whole_columns; c += W) {
    for (int64_t i = 0; i < whole_steps; i += W) {
      Vec<T> square[W];
      for (int64_t j = 0; j < W; ++j) {
        square[j] = load_lanes<T>(source + (c + j) * view.stride[3] + steps.first + i);
      }
      transpose<T>(square);
      for (int64_t j = 0; j < W; ++j) store(rows + (i + j) * width + c, square[j]);
    }
  }
  const Steps last{nullptr, steps.first + whole_steps, steps.count - whole_steps};
  load_scattered(source, view, last, whole_columns, width, rows + whole_steps * width);
  load_scattered(source + whole_columns * view.stride[3], view, steps, columns - whole_columns, width,
                 rows + whole_columns);
}

// rows[i][c] = view[batch, route, pixel(i), column + c] for c < columns; columns <= c < width stay unchanged.
template <typename T>
void load_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column, int64_t columns,
               int64_t width, T* rows) {
  with_type(view, [&](auto* data) {
    const auto* source = data + origin(view, batch, route, column);
    if (has_rows(view) && columns > 1) return load_rows(source, view, steps, columns, width, rows);
    if (has_columns(view, steps)) return load_columns(source, view, steps, columns, width, rows);
    return load_scattered(source, view, steps, columns, width, rows);
  });
}

template <typename T, bool kAdd, typename Target>
void store_rows(Target* target, const View& view, Steps steps, int64_t columns, int64_t width, const T* rows) {
  const int64_t stride = view.stride[2];
  if (columns == kLanes<T>) {
    for (int64_t i = 0; i < steps.count; ++i) {
      Target* to = target + steps.pixel(i) * stride;
      const Vec<T> value = load(rows + i * width);
      store_lanes<T>(to, kAdd ? load_lanes<T>(to) + value : value);
    }
    return;
  }
  for (int64_t i = 0; i < steps.count; ++i) {
    Target* to = target + steps.pixel(i) * stride;
    const T* from = rows + i * width;
    int64_t c = 0;
    for (; c + kLanes<T> <= columns; c += kLanes<T>) {
      const Vec<T> value = load(from + c);
      store_lanes<T>(to + c, kAdd ? load_lanes<T>(to + c) + value : value);
    }
    for (; c < columns; ++c) narrow(kAdd ? static_cast<T>(widen(to[c])) + from[c] : from[c], to[c]);
  }
}

template <typename T, bool kAdd, typename Target>
void store_scattered(Target* target, const View& view, Steps steps, int64_t columns, int64_t width, const T* rows) {
  const int64_t stride = view.stride[2];
  for (int64_t c = 0; c < columns; ++c) {
    Target* to = target + c * view.stride[3];
    for (int64_t i = 0; i < steps.count; ++i) {
      Target& element = to[steps.pixel(i) * stride];
      const T value = rows[i * width + c];
      narrow(kAdd ? static_cast<T>(widen(element)) + value : value, element);
    }
  }
}

template <typename T, bool kAdd, typename Target>
void store_columns(Target* target, const View& view, const Steps& steps, int64_t columns, int64_t width,
                   const T* rows) {
  constexpr int64_t W = kLanes<T>;
  const bool done = columns % W == 0 && with_short_sequences<T>(view, steps, [&](auto count) {
    constexpr int S = decltype(count)::value;
    for (int64_t c = 0; c < columns; c += W) {
      Vec<T> matrix[S];
      VMDDPM_UNROLL
      for (int i = 0; i < S; ++i) matrix[i] = load(rows + i * width + c);
      shuffle_stages<T, S, log2_of(S)>(matrix);
      VMDDPM_UNROLL
      for (int i = 0; i < S; ++i) {
        Target* const to = target + c * S + i * W;
        store_lanes<T>(to, kAdd ? load_lanes<T>(to) + matrix[i] : matrix[i]);
      }
    }
  });
  if (done) return;
  const int64_t whole_steps = steps.count / W * W, whole_columns = columns / W * W;
  for (int64_t c = 0; c < whole_columns; c += W) {
    for (int64_t i = 0; i < whole_steps; i += W) {
      Vec<T> square[W];
      for (int64_t j = 0; j < W; ++j) square[j] = load(rows + (i + j) * width + c);
      transpose<T>(square);
      for (int64_t j = 0; j < W; ++j) {
        Target* to = target + (c + j) * view.stride[3] + steps.first + i;
        store_lanes<T>(to, kAdd ? load_lanes<T>(to) + square[j] : square[j]);
      }
    }
  }
  const Steps last{nullptr, steps.first + whole_steps, steps.count - whole_steps};
  store_scattered<T, kAdd>(target, view, last, whole_columns, width, rows + whole_steps * width);
  store_scattered<T, kAdd>(target + whole_columns * view.stride[3], view, steps, columns - whole_columns, width,
                           rows + whole_columns);
}

// The inverse of load_tile; kAdd accumulates instead of overwriting.
template <typename T, bool kAdd>
void store_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column, int64_t columns,
                int64_t width, const T* rows) {
  with_type(view, [&](auto* data) {
    auto* target = data + origin(view, batch, route, column);
    if (has_rows(view)) return store_rows<T, kAdd>(target, view, steps, columns, width, rows);
    if (has_columns(view, steps)) return store_columns<T, kAdd>(target, view, steps, columns, width, rows);
    return store_scattered<T, kAdd>(target, view, steps, columns, width, rows);
  });
}

template <typename T>
void store_tile(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column, int64_t columns,
                int64_t width, const T* rows, bool add) {
  return add ? store_tile<T, true>(view, batch, route, steps, column, columns, width, rows)
             : store_tile<T, false>(view, batch, route, steps, column, columns, width, rows);
}

// Prefetches rows of a tensor, one cache line per call in memory order: whole rows are read faster than parts of them,
// and few requests at a time do not wait for each other.
class RowPrefetcher {
 public:
  RowPrefetcher() = default;
  RowPrefetcher(const View& view, int64_t batch, int64_t route, const Steps& steps, int64_t column, int64_t columns) {
    if (!view.data) return;
    const int64_t size = size_of(view.dtype);
    const char* data = static_cast<const char*>(view.data) + origin(view, batch, route, column) * size;
    if (has_rows(view)) {
      const int64_t stride = view.stride[2] * size;
      set(data, stride, columns * size, steps.count);
      if (steps.table) {
        pixels_ = steps.table + steps.first;
      } else {
        start_ += steps.first * stride;
      }
    } else if (has_columns(view, steps)) {
      set(data + steps.first * size, view.stride[3] * size, steps.count * size, columns);
    }
  }
  // Prefetches the next cache line.
  VMDDPM_INLINE void next() {
    if (next_ >= end_) {
      if (row_ >= rows_) return;
      next_ = start_ + (pixels_ ? pixels_[row_] : row_) * stride_;
      end_ = next_ + bytes_;
      ++row_;
    }
    prefetch(next_);
    next_ += kLine;
  }

 private:
  static constexpr int64_t kLine = 64;
  void set(const char* start, int64_t stride, int64_t bytes, int64_t rows) {
    start_ = start;
    stride_ = stride;
    bytes_ = bytes;
    rows_ = rows;
  }
  const char *next_ = nullptr, *end_ = nullptr;  // of the current row
  const char* start_ = nullptr;
  const int32_t* pixels_ = nullptr;  // null: consecutive rows
  int64_t stride_ = 0, bytes_ = 0, rows_ = 0, row_ = 0;
};

}  // namespace
