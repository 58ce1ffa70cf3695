// Annotations for the sanitizers. The emulator itself is not instrumented, because CUDA threads never see its memory;
// it reports to the sanitizers the accesses and the ordering that a GPU would have.
#pragma once
#include <cstddef>

#if defined(VMDDPM_EMULATION_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
extern "C" void __asan_loadN(const void* address, size_t bytes);
extern "C" void __asan_storeN(void* address, size_t bytes);
#elif defined(VMDDPM_EMULATION_THREAD)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(const void* address, size_t bytes);
extern "C" void __tsan_write_range(void* address, size_t bytes);
#endif

namespace vmddpm {
namespace emulation {

#if defined(VMDDPM_EMULATION_THREAD)
constexpr bool kThreadSanitizer = true;

inline void release(void* order) { __tsan_release(order); }
inline void acquire(void* order) { __tsan_acquire(order); }
inline void* current_identity() { return __tsan_get_current_fiber(); }
inline void* create_identity() { return __tsan_create_fiber(0); }
inline void destroy_identity(void* identity) { __tsan_destroy_fiber(identity); }
inline void name_identity(void* identity, const char* name) { __tsan_set_fiber_name(identity, name); }
// Running one after the other must not order two threads: a GPU would run both at once.
inline void take_identity(void* identity) {
  if (identity != __tsan_get_current_fiber()) __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync);
}
#else
constexpr bool kThreadSanitizer = false;

inline void release(void*) {}
inline void acquire(void*) {}
inline void* current_identity() { return nullptr; }
inline void* create_identity() { return nullptr; }
inline void destroy_identity(void*) {}
inline void name_identity(void*, const char*) {}
inline void take_identity(void*) {}
#endif

// Accesses that the emulator makes on behalf of the running thread.
inline void observe_read(const void* address, size_t bytes) {
#if defined(VMDDPM_EMULATION_ADDRESS)
  __asan_loadN(address, bytes);
#elif defined(VMDDPM_EMULATION_THREAD)
  __tsan_read_range(address, bytes);
#else
  (void)address, (void)bytes;
#endif
}

inline void observe_write(void* address, size_t bytes) {
#if defined(VMDDPM_EMULATION_ADDRESS)
  __asan_storeN(address, bytes);
#elif defined(VMDDPM_EMULATION_THREAD)
  __tsan_write_range(address, bytes);
#else
  (void)address, (void)bytes;
#endif
}

inline void forget_stack([[maybe_unused]] void* stack, [[maybe_unused]] size_t bytes) {
#if defined(VMDDPM_EMULATION_ADDRESS)
  __asan_unpoison_memory_region(stack, bytes);
#endif
}

}  // namespace emulation
}  // namespace vmddpm
