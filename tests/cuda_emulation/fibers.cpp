#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "sanitizers.h"

#if defined(__x86_64__)
// Saves what a function must preserve on the old stack, and restores it from the new one. The floating-point control
// words are the same for all.
extern "C" void vmddpm_swap_stacks(void** save, void* load);
asm(R"(
.text
.p2align 4
.hidden vmddpm_swap_stacks
.globl vmddpm_swap_stacks
.type vmddpm_swap_stacks, @function
vmddpm_swap_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vmddpm_swap_stacks, . - vmddpm_swap_stacks
)");
#endif

namespace vmddpm {
namespace emulation {
namespace {

Fiber* left = nullptr;  // by the latest switch

void arrived([[maybe_unused]] void* fake_stack) {
#if defined(VMDDPM_EMULATION_ADDRESS)
  const void* bounds = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bounds, &bytes);
  // The only way to learn those of a thread that this file has not made.
  left->bounds = bounds;
  left->bounds_bytes = bytes;
#endif
}

}  // namespace

char* new_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory) + page;
}

void free_stack(char* stack) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(stack - page, page + kStackBytes);
}

void prepare(Fiber& fiber, char* stack, int index, void (*enter)()) {
  forget_stack(stack, kStackBytes);
  const size_t usable = kStackBytes - static_cast<size_t>(index) % 12 * 320;
  fiber.stack = stack;
  fiber.fake_stack = nullptr;
  fiber.bounds = stack;
  fiber.bounds_bytes = kStackBytes;
#if defined(__x86_64__)
  // As if enter had been called from an address of zero, with a frame pointer of zero: there a stack trace ends.
  void** top = reinterpret_cast<void**>(stack + usable) - 1;
  top[0] = nullptr;
  *--top = reinterpret_cast<void*>(enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = usable;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
#endif
}

void entered() { arrived(nullptr); }

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
  left = &from;
#if defined(VMDDPM_EMULATION_ADDRESS)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bounds, to.bounds_bytes);
#endif
  take_identity(to.identity);
#if defined(__x86_64__)
  vmddpm_swap_stacks(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrived(from.fake_stack);
}

}  // namespace emulation
}  // namespace vmddpm
