// The group normalisation on a CPU as each instruction set's object file provides it.
#pragma once
#include "params.h"

#define VMDDPM_DECLARE_GROUP_NORM(isa)                           \
  namespace vmddpm {                                             \
  namespace isa {                                                \
  void group_norm_forward(const GroupNormParams& params);        \
  void group_norm_backward(const GroupNormGradParams& grad);     \
  }                                                              \
  }
