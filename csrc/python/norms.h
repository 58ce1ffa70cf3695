// The functions of the extension for normalisations.
#pragma once
#include "tensors.h"

namespace vmddpm {

void define_norms(py::module_& m);

}  // namespace vmddpm
