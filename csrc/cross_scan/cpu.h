// Declares the CPU cross scan and merge that each instruction set's object file defines.
#pragma once
#include "cross_scan.h"

#define VMDDPM_DECLARE_CROSS_SCAN(isa)             \
  namespace vmddpm {                               \
  namespace isa {                                  \
  void cross_scan(const CrossScanParams& params);  \
  void cross_merge(const CrossScanParams& params); \
  }                                                \
  }
