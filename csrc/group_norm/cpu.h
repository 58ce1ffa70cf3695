// Declares the CPU group normalisation that each instruction set's object file defines.
#pragma once
#include "params.h"

#define VMDDPM_DECLARE_GROUP_NORM(isa)                           \
  namespace vmddpm {                                             \
  namespace isa {                                                \
  void group_norm_forward(const GroupNormParams& params);        \
  void group_norm_backward(const GroupNormGradParams& grad);     \
  }                                                              \
  }
