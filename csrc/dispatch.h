// The kernels of the best instruction set of this processor. cross_scan/cpu.cpp chooses its own in the same way.
#pragma once
#include "causal_conv1d/params.h"
#include "group_norm/params.h"
#include "linear/params.h"
#include "selective_scan/params.h"
#include "state_update/params.h"

// Declares what the object file of each instruction set defines, but for the scan.
#define VMDDPM_DECLARE_KERNELS(isa)                          \
  namespace vmddpm {                                         \
  namespace isa {                                            \
  void conv_forward(const ConvParams& params);               \
  void conv_backward(const ConvGradParams& grad);            \
  void conv_update(const ConvUpdateParams& params);          \
  void group_norm_forward(const GroupNormParams& params);    \
  void group_norm_backward(const GroupNormGradParams& grad); \
  void linear(const LinearParams& params);                   \
  void state_update(const StateUpdateParams& params);        \
  }                                                          \
  }

namespace vmddpm {

struct CpuKernels {
  const char* isa;
  ScanPlan (*scan_plan)(const ScanParams&);
  void (*scan_forward)(const ScanParams&);
  void (*scan_backward)(const ScanGradParams&);
  void (*conv_forward)(const ConvParams&);
  void (*conv_backward)(const ConvGradParams&);
  void (*conv_update)(const ConvUpdateParams&);
  void (*group_norm_forward)(const GroupNormParams&);
  void (*group_norm_backward)(const GroupNormGradParams&);
  void (*linear)(const LinearParams&);
  void (*state_update)(const StateUpdateParams&);
};

// The environment variable VMDDPM_CPU_ISA=avx512|avx2|baseline selects another set. Throws std::invalid_argument if
// this build or this processor does not have it.
const CpuKernels& cpu_kernels();

}  // namespace vmddpm
