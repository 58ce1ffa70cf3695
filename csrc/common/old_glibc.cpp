// Symbols that the libstdc++ in wheels needs and glibc 2.28 does not have. The kernels use neither.
#include <sys/random.h>

#include <cstdint>

extern "C" {
// Since glibc 2.32, for reference counts. Always 0, so that they stay atomic.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// Since glibc 2.36, for std::random_device.
__attribute__((visibility("hidden"))) std::uint32_t arc4random() {
  std::uint32_t value;
  if (getentropy(&value, sizeof value) != 0) __builtin_trap();
  return value;
}
}
