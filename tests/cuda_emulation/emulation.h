// What gpu.h asks of the emulator.
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

// Runs the blocks one after another, in order. Throws std::runtime_error naming the kernel if the launch asks for what
// a GPU would refuse, or if a thread does what a GPU gives no meaning to.
void launch(const char* name, void (*run)(const void*), const void* arguments, int64_t blocks, int threads,
            int64_t shared_bytes);

// Gives back the stacks that launches leave for the next. Each is two mappings of memory, of which a process has 65,530
// at most, and each library with kernels translated from PTX (tests/ptx) has its own.
void free_stacks();

// Counts the stretches that warps run from one stop to the next.
extern uint64_t stretch;

// Runs a launch in the kernel's place, if it is set; tests/ptx sets it. Returns null, or what went wrong.
using Substitute = const char* (*)(const char* name, const void* kernel, const void* arguments, int64_t argument_bytes,
                                   int64_t blocks, int threads, int64_t shared_bytes);
extern Substitute substitute;

void barrier(Site site);
void exchange(void* values, int count, int size, int mask, Site site);
void start_copy(void* to, const void* from, int bytes, int valid, Site site);
void commit_copies();
void wait_copies(int pending, Site site);

enum class Access { read, write, read_shared, write_shared };

// Notes an access of the running thread, if accesses are counted (counts.h); one of no bytes is its lane's absence from
// an access of its warp. An address that is no multiple of the size, which a GPU refuses, ends the launch.
void count(Access kind, const void* address, int bytes, Site site);

// Zero of the same sign for a subnormal, as .ftz instructions read and write it.
inline float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
inline double flushed(double x) { return x; }

// red.global.add: in a float, subnormal numbers are zero.
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
