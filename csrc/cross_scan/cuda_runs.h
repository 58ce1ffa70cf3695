// Runs: equally long sequences of contiguous elements. Each thread of a block moves 16 bytes, starting at the 32-byte
// sector where a run begins, so that warps read only whole sectors inside a run.
#pragma once
#include "cuda_walk.h"

namespace vmddpm {
namespace gpu {

constexpr int kSectorBytes = 32;
constexpr int kLongRunBytes = 1024;   // long enough to neglect the ends, which are moved by elements

template <typename T>
struct Runs {
  T* data;
  int64_t step;             // from one element to the next
  int size, lines, count;   // elements of a run, runs of a channel, runs
  int64_t across, channel;  // from one run to the next, from one channel to the next

  // The runs of passage `p` of a route; `start` is its first element for the first channel of a tile.
  VMDDPM_DEVICE Runs(T* start, const View& view, const Passage& p, int channels)
      : data(start + p.first * view.stride[2]), step(view.stride[2]), size(p.size), lines(p.lines),
        across(p.across * view.stride[2]), channel(view.stride[3]) {
    if (lines == 1 || across == size * step) {  // lines are contiguous
      size *= lines;
      lines = 1;
      across = channel;
    }
    if (lines == 1 && step == 1 && channel == size) {  // channels are contiguous too
      size *= channels;
      channels = 1;
    }
    count = lines * channels;
  }

  VMDDPM_DEVICE T* run(int channel_index, int line) const { return data + channel_index * channel + line * across; }

  VMDDPM_DEVICE bool in_vectors() const {
    if (step != 1) return false;
    if (size * static_cast<int>(sizeof(T)) >= kLongRunBytes) return true;
    const int64_t all = reinterpret_cast<intptr_t>(data) | (across | channel | size) * static_cast<int64_t>(sizeof(T));
    return all % 16 == 0;
  }
};

// One thread's part of a run: the elements first .. first + n that are inside the run.
template <typename T>
struct Part {
  T* start;   // start of the run
  int base;   // elements in earlier runs
  int first;
  VMDDPM_DEVICE int begin() const { return first < 0 ? 0 : first; }
  VMDDPM_DEVICE int end(int n, int size) const { return first + n < size ? first + n : size; }
};

// The parts of runs, n elements each, padded to whole sectors at both ends of a run.
template <typename T, int n>
class Parts {
 public:
  VMDDPM_DEVICE explicit Parts(const Runs<T>& runs)
      : runs_(runs), each_((runs.size + 2 * kLead - 2) / kLead * kLead / n), per_run_(each_), per_line_(runs.lines) {}
  VMDDPM_DEVICE int count() const { return runs_.count * each_; }
  VMDDPM_DEVICE Part<T> operator[](int index) const {
    const int run = per_run_(index), channel = per_line_(run);
    T* const start = runs_.run(channel, run - channel * runs_.lines);
    const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(start) % kSectorBytes / sizeof(T));
    return {start, run * runs_.size, (index - run * each_) * n - (runs_.step == 1 ? lead : 0)};
  }

 private:
  static constexpr int kLead = kSectorBytes / sizeof(T);
  const Runs<T>& runs_;
  int each_;
  Divisor per_run_, per_line_;
};

// n contiguous elements: 16 bytes, or one element.
template <typename T, int n>
struct Elements {
  T at[n];
};

template <int n, typename T>
VMDDPM_DEVICE Elements<T, n> read_elements(const T* from) {
  Elements<T, n> values;
  if constexpr (n > 1) {
    const Vector<T> vector = read_vector(from);
#pragma unroll
    for (int j = 0; j < n; ++j) values.at[j] = vector.at[j];
  } else {
    values.at[0] = read(from);
  }
  return values;
}

template <int n, typename T>
VMDDPM_DEVICE void write_elements(T* to, const Elements<T, n>& values) {
  if constexpr (n > 1) {
    Vector<T> vector;
#pragma unroll
    for (int j = 0; j < n; ++j) vector.at[j] = values.at[j];
    write_vector(to, vector);
  } else {
    write(to, values.at[0]);
  }
}

template <int n, typename T, typename Use>
VMDDPM_DEVICE void read_parts(const Runs<const T>& runs, Cursor cursor, Use use) {
  const Parts<const T, n> parts(runs);
#pragma unroll 1
  for (int index = thread(); index < parts.count(); index += threads()) {
    const Part<const T> part = parts[index];
    const bool whole = part.first >= 0 && part.first + n <= runs.size;
    if constexpr (n == 1) {
      const T value = read_if(whole, part.start + part.first * runs.step);
      cursor.go_to(part.base + part.first);
      if (whole) use(cursor.at(), value);
    } else if (whole) {
      const Elements<T, n> values = read_elements<n>(part.start + part.first);
      cursor.go_to(part.base + part.first);
#pragma unroll
      for (int j = 0; j < n; ++j, cursor.next()) use(cursor.at(), values.at[j]);
    } else {
#pragma unroll 1
      for (int i = part.begin(); i < part.end(n, runs.size); ++i) {
        cursor.go_to(part.base + i);
        use(cursor.at(), read(part.start + i));
      }
    }
  }
}

// Reads all runs and calls use(place in the tile, value) for each element.
template <typename T, typename Use>
VMDDPM_DEVICE void read_runs(const Runs<const T>& runs, const Cursor& cursor, Use use) {
  if (runs.in_vectors()) return read_parts<Vector<T>::kCount>(runs, cursor, use);
  read_parts<1>(runs, cursor, use);
}

template <int n, typename T, typename Value>
VMDDPM_DEVICE void write_parts(const Runs<T>& runs, Cursor cursor, Value value) {
  const Parts<T, n> parts(runs);
#pragma unroll 1
  for (int index = thread(); index < parts.count(); index += threads()) {
    const Part<T> part = parts[index];
    const bool whole = part.first >= 0 && part.first + n <= runs.size;
    if constexpr (n == 1) {
      cursor.go_to(part.base + part.first);
      write_if(whole, part.start + part.first * runs.step, whole ? value(cursor.at()) : T());
    } else if (whole) {
      Elements<T, n> values;
      cursor.go_to(part.base + part.first);
#pragma unroll
      for (int j = 0; j < n; ++j, cursor.next()) values.at[j] = value(cursor.at());
      write_elements<n>(part.start + part.first, values);
    } else {
#pragma unroll 1
      for (int i = part.begin(); i < part.end(n, runs.size); ++i) {
        cursor.go_to(part.base + i);
        write(part.start + i, value(cursor.at()));
      }
    }
  }
}

// Writes all runs, with value(place in the tile) for each element.
template <typename T, typename Value>
VMDDPM_DEVICE void write_runs(const Runs<T>& runs, const Cursor& cursor, Value value) {
  if (runs.in_vectors()) return write_parts<Vector<T>::kCount>(runs, cursor, value);
  write_parts<1>(runs, cursor, value);
}

}  // namespace gpu
}  // namespace vmddpm
