// Cross scan and merge on a CPU as each instruction set's object file provides them.
#pragma once
#include "cross_scan.h"

#define VMDDPM_DECLARE_CROSS_SCAN(isa)             \
  namespace vmddpm {                               \
  namespace isa {                                  \
  void cross_scan(const CrossScanParams& params);  \
  void cross_merge(const CrossScanParams& params); \
  }                                                \
  }
