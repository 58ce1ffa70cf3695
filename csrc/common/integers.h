// Integer arithmetic on sizes. In an unnamed namespace, because each instruction set compiles its own.
#pragma once
#include <cstdint>

namespace {

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

// The number of threads that are worth waking: each needs `work_a_thread`, about ten microseconds of work.
inline int useful_threads(int64_t work, int64_t work_a_thread, int threads) {
  return static_cast<int>(maximum(1, minimum(work / work_a_thread, threads)));
}

}  // namespace
