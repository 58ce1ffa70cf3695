// The functions of the extension for causal convolutions and single steps.
#pragma once
#include "tensors.h"

namespace vmddpm {

void define_steps(py::module_& m);

}  // namespace vmddpm
