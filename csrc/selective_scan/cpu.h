// The CPU scan as each instruction set's object file provides it.
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
