// The four regular routes of an image on a CPU: from Python's tensor to Python's result in one call.
#pragma once
#include "tensors.h"

namespace vmddpm {

// `cross_scan`, or `cross_merge` if `merge`, of vmddpm_kernels/cross_scan.py. Pixels that the tensor has on two axes
// are on one axis of the result; where height and width are given, it is the other way round. None if an argument does
// not fit or is not easily told to, or if the pixels of a row and the rows are not evenly spaced.
py::object cross_image(const py::handle& tensor, int64_t height, int64_t width, const py::handle& in_channel_first,
                       const py::handle& out_channel_first, const py::handle& one_by_one, const py::handle& scans,
                       bool merge, int threads);

}  // namespace vmddpm
