// The scan kernels of the best instruction set this processor has.
#pragma once
#include "../selective_scan/params.h"

namespace vmddpm {

struct CpuKernels {
  const char* isa;
  ScanPlan (*scan_plan)(const ScanParams&);
  void (*scan_forward)(const ScanParams&);
  void (*scan_backward)(const ScanGradParams&);
};

// VMDDPM_CPU_ISA=avx512|avx2|baseline in the environment asks for a lesser one, or the same.
// Throws std::invalid_argument if it names one that this build or this processor does not have.
const CpuKernels& cpu_kernels();

}  // namespace vmddpm
