// Cases that check the emulation itself: `clean` cases must pass; each other case has one fault that must be caught.
#pragma once
#include <gpu.h>

#include <cstdint>
#include <vector>

namespace selftest {

struct Case {
  const char* name;
  bool (*run)();  // returns whether all values are right
};

extern const std::vector<Case> clean;
extern const std::vector<Case> faults;

using namespace vmddpm::gpu;

// The arguments of every kernel here, with `count` elements each.
struct Arrays {
  const float* in;
  float* out;
  int count;
};

constexpr int kThreads = 64;

VMDDPM_DEVICE float* shared_floats() { return reinterpret_cast<float*>(shared()); }

// Launches with one float of shared memory per thread.
template <typename Params>
void launch_here(void (*kernel)(Params), int64_t blocks, Params params) {
  launch("selftest", kernel, blocks, kThreads, kThreads * 4, nullptr, params);
}

}  // namespace selftest
