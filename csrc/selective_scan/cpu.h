// Declares the CPU scan that each instruction set's object file defines.
#pragma once
#include "params.h"

#define VMDDPM_DECLARE_SCAN(isa)                 \
  namespace vmddpm {                             \
  namespace isa {                                \
  ScanPlan scan_plan(const ScanParams& params);  \
  void scan_forward(const ScanParams& params);   \
  void scan_backward(const ScanGradParams& grad);\
  }                                              \
  }
