// The convolution on a CPU as each instruction set's object file provides it.
#pragma once
#include "params.h"

#define VMDDPM_DECLARE_CONV(isa)                     \
  namespace vmddpm {                                 \
  namespace isa {                                    \
  void conv_forward(const ConvParams& params);       \
  void conv_backward(const ConvGradParams& grad);    \
  void conv_update(const ConvUpdateParams& params);  \
  }                                                  \
  }
