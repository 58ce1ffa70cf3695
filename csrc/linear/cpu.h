// Declares the linear layer that each instruction set's object file defines.
#pragma once
#include "params.h"

#define VMDDPM_DECLARE_LINEAR(isa)         \
  namespace vmddpm {                       \
  namespace isa {                          \
  void linear(const LinearParams& params); \
  }                                        \
  }
