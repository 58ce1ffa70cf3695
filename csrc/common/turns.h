// The order in which threads add to one sum.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace {

// The progress of a task, alone on its cache line.
struct alignas(64) Turns {
  std::atomic<int64_t> done{0};
};

// Waits until a task has done `steps` steps, yielding the core meanwhile.
inline void wait_for(const Turns& task, int64_t steps) {
  constexpr int kYields = 64;
  for (int tries = 0; task.done.load(std::memory_order_acquire) < steps; ++tries) {
    if (tries < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

}  // namespace
