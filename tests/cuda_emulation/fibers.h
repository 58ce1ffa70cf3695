// Stacks that run in turn on one thread of the operating system.
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
  char* stack = nullptr;           // lowest byte; null for the thread that starts fibers
  void* identity = nullptr;        // whom ThreadSanitizer takes it for
  void* fake_stack = nullptr;      // AddressSanitizer's, while it does not run
  const void* bounds = nullptr;    // of its stack
  size_t bounds_bytes = 0;
};

// AddressSanitizer puts space between local variables.
#if defined(VMDDPM_EMULATION_ADDRESS)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// A stack of kStackBytes above a page that must not be touched.
char* new_stack();
void free_stack(char* stack);

// The fiber will call enter() when it is first switched to, on a stack whose top depends on `index`: tops at equal
// distances would all fall into the same few cache lines.
void prepare(Fiber& fiber, char* stack, int index, void (*enter)());

// First thing in enter().
void entered();

// Goes on with `to`; returns when something switches to `from` again. `last`: nothing will.
void switch_fiber(Fiber& from, Fiber& to, bool last = false);

}  // namespace emulation
}  // namespace vmddpm
