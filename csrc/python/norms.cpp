#include "functions.h"

#include "../dispatch.h"

namespace vmddpm {
namespace {

// A weight or bias (C), or (B, C), and its step from image to image.
const void* by_channel(const py::handle& tensor, int64_t batch, int64_t channels, int64_t float_size, int64_t& stride) {
  if (tensor.is_none()) return nullptr;
  const bool of_images = py::tuple(attribute_of(tensor, names.shape)).size() == 2;
  stride = of_images ? channels : 0;
  return checked_pointer(tensor, of_images ? batch * channels : channels, float_size);
}

// x (B, C, ...) with the channels of a pixel side by side and the pixels of an image after one another.
GroupNormParams group_norm_params(const py::handle& x, const py::handle& weight, const py::handle& bias,
                                  const py::handle& mean, const py::handle& rstd, double eps, int threads) {
  GroupNormParams p{};
  const py::tuple shape = attribute_of(x, names.shape);
  p.batch = int64_at(shape, 0);
  p.channels = int64_at(shape, 1);
  p.length = 1;
  for (size_t axis = 2; axis < shape.size(); ++axis) p.length *= int64_at(shape, axis);
  p.groups = int64_at(py::tuple(attribute_of(mean, names.shape)), 1);
  p.eps = eps;
  p.threads = threads;
  read_dtype(x, p.dtype);
  const int64_t float_size = p.dtype == DType::f64 ? 8 : 4;
  p.x = checked_pointer(x, p.batch * p.length * p.channels, size_of(p.dtype));
  p.weight = by_channel(weight, p.batch, p.channels, float_size, p.weight_stride);
  p.bias = by_channel(bias, p.batch, p.channels, float_size, p.bias_stride);
  p.mean = checked_pointer(mean, p.batch * p.groups, float_size);
  p.rstd = checked_pointer(rstd, p.batch * p.groups, float_size);
  return p;
}

void group_norm_forward(const py::handle& x, const py::handle& weight, const py::handle& bias, const py::handle& mean,
                        const py::handle& rstd, const py::handle& y, double eps, int threads) {
  GroupNormParams p = group_norm_params(x, weight, bias, mean, rstd, eps, threads);
  p.y = pointer(y);
  const py::gil_scoped_release release;
  cpu_kernels().group_norm_forward(p);
}

void group_norm_backward(const py::handle& dy, const py::handle& x, const py::handle& weight, const py::handle& bias,
                         const py::handle& mean, const py::handle& rstd, const py::handle& dx,
                         const py::handle& dweight, const py::handle& dbias, int threads) {
  GroupNormGradParams g{};
  g.forward = group_norm_params(x, weight, bias, mean, rstd, 0, threads);
  const GroupNormParams& p = g.forward;
  g.dy = checked_pointer(dy, p.batch * p.length * p.channels, size_of(p.dtype));
  g.dx = pointer(dx);
  g.dweight = pointer(dweight);
  g.dbias = pointer(dbias);
  const py::gil_scoped_release release;
  cpu_kernels().group_norm_backward(g);
}

}  // namespace

void define_norms(py::module_& m) {
  m.def("group_norm_forward", &group_norm_forward);
  m.def("group_norm_backward", &group_norm_backward);
}

}  // namespace vmddpm
