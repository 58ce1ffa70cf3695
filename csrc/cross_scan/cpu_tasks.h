// Work in equal tasks for the threads that are worth waking, and each thread's memory for them.
#pragma once
#include <cstddef>
#include <new>

#include "cpu_walk.h"

namespace {

// Kept from call to call: pages that are touched for the first time cost more than the work on them.
class Scratch {
 public:
  ~Scratch() { release(); }
  template <typename T>
  T* reserve(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > size_) {
      release();
      start_ = ::operator new(static_cast<std::size_t>(bytes), kAlignment);
      size_ = bytes;
    }
    return static_cast<T*>(start_);
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void release() {
    ::operator delete(start_, kAlignment);
    start_ = nullptr;
    size_ = 0;
  }
  void* start_ = nullptr;
  int64_t size_ = 0;
};

// Of a panel, of a strip or a few steps, of a block of planes, and of a call's table, which other threads read.
thread_local Scratch panel_scratch, strip_scratch, block_scratch, table_scratch;

// Calls run(task) for every task below count. No team is started for one thread.
template <typename Run>
void for_each_task(int64_t count, int threads, Run run) {
  if (count < threads) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (int64_t task = 0; task < count; ++task) run(task);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < count; ++task) run(task);
}

// [first, end) of part `index` of n things in `parts` parts of about one size.
struct Part {
  int64_t first, end;
  Part(int64_t n, int64_t parts, int64_t index) : first(n * index / parts), end(n * (index + 1) / parts) {}
  int64_t count() const { return end - first; }
};

// The same in whole units, such as cache lines.
struct UnitPart : Part {
  UnitPart(int64_t n, int64_t unit, int64_t parts, int64_t index) : Part((n + unit - 1) / unit, parts, index) {
    first *= unit;
    end = smaller(end * unit, n);
  }
};

}  // namespace
