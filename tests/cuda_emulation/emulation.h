// The emulator's interface for gpu.h.
#pragma once
#include <cstdint>

namespace vmddpm {
namespace emulation {

// A line of a kernel's source.
struct Site {
  const char* file;
  int line;
};

// The CUDA thread that runs now.
struct Position {
  int thread, threads;
  int64_t block;
  char* shared;
};
extern Position here;

// Runs the blocks one after another, in order. Throws std::runtime_error naming the kernel if a GPU would refuse the
// launch, or if a thread does something undefined on a GPU.
void launch(const char* name, void (*run)(const void*), const void* arguments, int64_t blocks, int threads,
            int64_t shared_bytes);

// Frees the stacks that launches keep for the next launch. Each takes two of the 65,530 memory mappings of a process,
// and each library of kernels translated from PTX (tests/ptx) has its own stacks.
void free_stacks();

// Counts the runs of warps from one stop to the next.
extern uint64_t stretch;

// If set (by tests/ptx), runs a launch instead of the kernel. Returns null or an error message.
using Substitute = const char* (*)(const char* name, const void* kernel, const void* arguments, int64_t argument_bytes,
                                   int64_t blocks, int threads, int64_t shared_bytes);
extern Substitute substitute;

void barrier(Site site);
void exchange(void* values, int count, int size, int mask, Site site);
void start_copy(void* to, const void* from, int bytes, int valid, Site site);
void commit_copies();
void wait_copies(int pending, Site site);

enum class Access { read, write, read_shared, write_shared };

// Counts an access of the running thread if counting is on (counts.h); zero bytes mean that this lane takes no part in
// its warp's access. A misaligned address, which a GPU refuses, ends the launch.
void count(Access kind, const void* address, int bytes, Site site);

// Flushes a subnormal to zero of the same sign, as .ftz instructions do.
inline float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
inline double flushed(double x) { return x; }

// red.global.add: subnormal floats count as zero.
template <typename T>
inline void atomic_add(T* to, T value) {
  T found, sum;
  __atomic_load(to, &found, __ATOMIC_RELAXED);
  do {
    sum = flushed(flushed(found) + flushed(value));
  } while (!__atomic_compare_exchange(to, &found, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

}  // namespace emulation
}  // namespace vmddpm
