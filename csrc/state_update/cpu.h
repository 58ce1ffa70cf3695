// The step on a CPU as each instruction set's object file provides it.
#pragma once
#include "params.h"

#define VMDDPM_DECLARE_STATE_UPDATE(isa)              \
  namespace vmddpm {                                  \
  namespace isa {                                     \
  void state_update(const StateUpdateParams& params); \
  }                                                   \
  }
