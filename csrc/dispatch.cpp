#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "selective_scan/cpu.h"

#define VMDDPM_DECLARE(isa) \
  VMDDPM_DECLARE_SCAN(isa)  \
  VMDDPM_DECLARE_KERNELS(isa)

VMDDPM_DECLARE(baseline)
#ifdef VMDDPM_X86
VMDDPM_DECLARE(avx2)
VMDDPM_DECLARE(avx512)
#endif

namespace vmddpm {
namespace {

#define VMDDPM_KERNELS(isa)                                                   \
  {#isa,              isa::scan_plan,     isa::scan_forward, isa::scan_backward, \
   isa::conv_forward, isa::conv_backward, isa::conv_update,  isa::group_norm_forward, \
   isa::group_norm_backward, isa::linear, isa::state_update}

// Best first.
const CpuKernels kKernels[] = {
#ifdef VMDDPM_X86
    VMDDPM_KERNELS(avx512),
    VMDDPM_KERNELS(avx2),
#endif
    VMDDPM_KERNELS(baseline),
};

bool supported(const std::string& isa) {
#ifdef VMDDPM_X86
  if (isa == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return isa == "baseline";
}

const CpuKernels& choose() {
  const char* requested = std::getenv("VMDDPM_CPU_ISA");
  std::string available;
  for (const CpuKernels& kernels : kKernels) {
    if (!supported(kernels.isa)) continue;
    if (!requested || !*requested || std::string(requested) == kernels.isa) return kernels;
    available += std::string(available.empty() ? "" : ", ") + kernels.isa;
  }
  throw std::invalid_argument("VMDDPM_CPU_ISA=" + std::string(requested) + " is not available here; choose from " + available);
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace vmddpm
