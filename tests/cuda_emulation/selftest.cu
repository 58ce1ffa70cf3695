// selftest CASE...: runs the cases in turn. `clean` is all that must pass, `faults` lists the others, and `speed` is
// what it costs to switch. Ends with 0, with 1 if values are wrong, or with 2 if the emulation refused to go on.
#include "selftest.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>

namespace selftest {
namespace {

int run_case(const Case& chosen) {
  try {
    if (chosen.run()) return 0;
    std::printf("%s: wrong values\n", chosen.name);
    return 1;
  } catch (const std::exception& error) {
    std::printf("%s: refused: %s\n", chosen.name, error.what());
    return 2;
  }
}

VMDDPM_KERNEL(128, 1) only_exchanges(VMDDPM_ARGUMENTS(Arrays) a) {
  float values[4] = {};
  for (int i = 0; i < a.count; ++i) exchange(values, 1);
}

VMDDPM_KERNEL(128, 1) only_barriers(VMDDPM_ARGUMENTS(Arrays) a) {
  for (int i = 0; i < a.count; ++i) barrier();
}

int list_faults() {
  for (const Case& one : faults) std::printf("%s\n", one.name);
  return 0;
}

int print_speed() {
  for (const bool barriers : {false, true}) {
    constexpr int kBlocks = 20, kCount = 1000;
    const auto start = std::chrono::steady_clock::now();
    launch("speed", barriers ? &only_barriers : &only_exchanges, kBlocks, 128, 1024, nullptr,
           Arrays{nullptr, nullptr, kCount});
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    std::printf("%s: %.1f ns a thread\n", barriers ? "barrier" : "exchange", taken.count() / kBlocks / kCount / 128);
  }
  return 0;
}

}  // namespace
}  // namespace selftest

// For Python, which has another main.
extern "C" __attribute__((visibility("default"))) int vmddpm_selftest(const char* name) {
  using namespace selftest;
  int worst = 0;
  bool known = false;
  if (std::strcmp(name, "speed") == 0) return print_speed();
  if (std::strcmp(name, "faults") == 0) return list_faults();
  const bool all = std::strcmp(name, "clean") == 0;
  for (const auto* cases : {&clean, &faults}) {
    for (const Case& one : *cases) {
      if (std::strcmp(one.name, name) != 0 && !(all && cases == &clean)) continue;
      known = true;
      const int result = run_case(one);
      worst = result > worst ? result : worst;
    }
  }
  if (!known) std::printf("no case is named %s\n", name);
  std::fflush(stdout);
  return known ? worst : 3;
}

int main(int argc, char** argv) {
  int worst = 0;
  for (int i = 1; i < argc; ++i) {
    const int result = vmddpm_selftest(argv[i]);
    worst = result > worst ? result : worst;
  }
  return worst;
}
