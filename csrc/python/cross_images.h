// Cross scan and merge along the four regular routes on a CPU, from Python tensor to Python tensor in one call.
#pragma once
#include "tensors.h"

namespace vmddpm {

// `cross_scan`, or `cross_merge` if `merge`, of vmddpm_kernels/cross_scan.py. Pixels have two axes in the tensor and
// one in the result; with height and width it is the other way round. Returns None if an argument does not fit or needs
// a slower check, or if pixels or rows are not equally spaced.
py::object cross_image(const py::handle& tensor, int64_t height, int64_t width, const py::handle& in_channel_first,
                       const py::handle& out_channel_first, const py::handle& one_by_one, const py::handle& scans,
                       bool merge, int threads);

}  // namespace vmddpm
