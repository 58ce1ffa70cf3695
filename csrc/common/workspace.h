// Memory reused between calls: the first access to a page costs more than the work on it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

namespace {

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(); }

  // Uninitialised memory for `count` elements, aligned to a register. Invalidates the memory of the previous call.
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

}  // namespace
