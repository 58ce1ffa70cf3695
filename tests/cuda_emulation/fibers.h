// Fibers: stacks that take turns on one operating system thread.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace vmddpm {
namespace emulation {

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;           // lowest byte; null for the thread that starts the fibers
  void* identity = nullptr;        // ThreadSanitizer's fiber
  void* fake_stack = nullptr;      // AddressSanitizer's, while the fiber is suspended
  const void* bounds = nullptr;    // of its stack
  size_t bounds_bytes = 0;
};

// AddressSanitizer puts space between local variables.
#if defined(VMDDPM_EMULATION_ADDRESS)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// Allocates a stack of kStackBytes above a guard page.
char* new_stack();
void free_stack(char* stack);

// The fiber calls enter() at the first switch to it. The top of its stack depends on `index`: equally spaced tops would
// share a few cache sets.
void prepare(Fiber& fiber, char* stack, int index, void (*enter)());

// Call first in enter().
void entered();

// Continues with `to`; returns when something switches back to `from`, which never happens if `last`.
void switch_fiber(Fiber& from, Fiber& to, bool last = false);

}  // namespace emulation
}  // namespace vmddpm
