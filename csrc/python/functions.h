// Functions of the extension that have a file of their own.
#pragma once
#include "tensors.h"

namespace vmddpm {

// Adds those for normalisations, and those for causal convolutions and single steps.
void define_norms(py::module_& m);
void define_steps(py::module_& m);

// The ScanSizes of a scan, if its inputs pass the checks of `ScanInputs.check` in vmddpm_kernels/scan_inputs.py and the
// gradients of its results, tensors or None, fit; None if one does not, or needs a slower check.
py::object scan_sizes(const py::handle& inputs, const py::handle& dy, const py::handle& dlast_state);

// `cross_scan`, or `cross_merge` if `merge`, of vmddpm_kernels/cross_scan.py, along the four regular routes on a CPU,
// from Python tensor to Python tensor. Pixels have two axes in the tensor and one in the result; with height and width
// it is the other way round. Returns None if an argument does not fit or needs a slower check, or if pixels or rows are
// not equally spaced.
py::object cross_image(const py::handle& tensor, int64_t height, int64_t width, const py::handle& in_channel_first,
                       const py::handle& out_channel_first, const py::handle& one_by_one, const py::handle& scans,
                       bool merge, int threads);

}  // namespace vmddpm
