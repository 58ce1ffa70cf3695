// The kernels of the best instruction set of this processor. cross_scan/cpu.cpp chooses its own in the same way.
#pragma once
#include "causal_conv1d/params.h"
#include "selective_scan/params.h"
#include "state_update/params.h"

namespace vmddpm {

struct CpuKernels {
  const char* isa;
  ScanPlan (*scan_plan)(const ScanParams&);
  void (*scan_forward)(const ScanParams&);
  void (*scan_backward)(const ScanGradParams&);
  void (*conv_forward)(const ConvParams&);
  void (*conv_backward)(const ConvGradParams&);
  void (*conv_update)(const ConvUpdateParams&);
  void (*state_update)(const StateUpdateParams&);
};

// VMDDPM_CPU_ISA=avx512|avx2|baseline in the environment asks for a lesser one, or the same.
// Throws std::invalid_argument if it names one that this build or this processor does not have.
const CpuKernels& cpu_kernels();

}  // namespace vmddpm
