// What the libstdc++ that is linked into wheels takes from glibc and glibc 2.28 does not have. The kernels use neither.
#include <sys/random.h>

#include <cstdint>

extern "C" {
// Since 2.32; reference counts read it. It never says that there is one thread: they are always atomic.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// Since 2.36; std::random_device has it.
__attribute__((visibility("hidden"))) std::uint32_t arc4random() {
  std::uint32_t value;
  if (getentropy(&value, sizeof value) != 0) __builtin_trap();
  return value;
}
}
