#include "functions.h"

#include <stdexcept>
#include <string>

#include "../dispatch.h"

namespace vmddpm {
namespace {

using Sizes = std::array<int64_t, 4>;

int64_t size_at(const py::handle& tensor, size_t axis) {
  return int64_at(py::tuple(attribute_of(tensor, names.shape)), axis);
}

View checked_view(const py::handle& tensor, const Sizes& sizes) {
  const View v = view(tensor);
  check_view_storage(v, tensor, sizes);
  return v;
}

// The range of addresses of a view, in bytes.
struct Extent {
  const char *first, *end;
  Extent(const View& v, const Sizes& sizes) {
    const int64_t size = size_of(v.dtype);
    first = static_cast<const char*>(v.data);
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) first = nullptr;
      last += (sizes[i] - 1) * v.stride[i];
    }
    end = first ? first + (last + 1) * size : nullptr;
  }
  bool meets(const Extent& other) const { return first && other.first && first < other.end && other.first < end; }
};

// Throws if an input overlaps the state, which is updated in place.
void check_apart(const Extent& state, const View& v, const Sizes& sizes) {
  if (!state.meets(Extent(v, sizes))) return;
  throw std::invalid_argument(
      "an argument lies in the memory of the state, which is changed in place: pass a clone of the argument");
}

// Throws unless there is a kernel for this number of taps.
int64_t taps(const py::handle& weight) {
  const int64_t width = size_at(weight, 1);
  if (width < 2 || width > 4) {
    throw std::invalid_argument("weight (D, W) must have 2 to 4 taps, got W = " + std::to_string(width));
  }
  return width;
}

// x (B, L, D).
ConvParams conv_params(const py::handle& x, const py::handle& weight, const py::handle& bias,
                       const py::handle& history, bool wide, bool silu, bool columns, int threads) {
  ConvParams p{};
  p.batch = size_at(x, 0);
  p.length = size_at(x, 1);
  p.channels = size_at(x, 2);
  p.width = taps(weight);
  p.wide = wide;
  p.silu = silu;
  p.columns = columns;
  p.threads = threads;
  const int64_t float_size = wide ? 8 : 4;
  p.x = checked_view(x, {p.batch, 1, p.length, p.channels});
  p.weight = checked_pointer(weight, p.channels * p.width, float_size);
  p.bias = checked_pointer(bias, p.channels, float_size);
  p.history = checked_pointer(history, p.batch * (p.width - 1) * p.channels, float_size);
  return p;
}

void conv_forward(const py::handle& x, const py::handle& weight, const py::handle& bias, const py::handle& history,
                  const py::handle& y, bool wide, bool silu, bool columns, int threads) {
  ConvParams p = conv_params(x, weight, bias, history, wide, silu, columns, threads);
  p.y = checked_view(y, {p.batch, 1, p.length, p.channels});
  const py::gil_scoped_release release;
  cpu_kernels().conv_forward(p);
}

void conv_backward(const py::handle& dy, const py::handle& x, const py::handle& weight, const py::handle& bias,
                   const py::handle& history, const py::handle& dx, const py::handle& dweight, const py::handle& dbias,
                   const py::handle& dhistory, bool wide, bool silu, bool columns, int threads) {
  ConvGradParams g{};
  g.forward = conv_params(x, weight, bias, history, wide, silu, columns, threads);
  const ConvParams& p = g.forward;
  const Sizes sizes{p.batch, 1, p.length, p.channels};
  g.dy = checked_view(dy, sizes);
  g.dx = checked_view(dx, sizes);
  g.dweight = pointer(dweight);
  g.dbias = pointer(dbias);
  g.dhistory = pointer(dhistory);
  const py::gil_scoped_release release;
  cpu_kernels().conv_backward(g);
}

// x and y (B, L, D), state (B, S, D).
void conv_update(const py::handle& x, const py::handle& state, const py::handle& weight, const py::handle& bias,
                 const py::handle& y, bool wide, bool silu) {
  ConvUpdateParams u{conv_params(x, weight, bias, py::none(), wide, silu, false, 1), size_at(state, 1), {}};
  ConvParams& p = u.conv;
  const Sizes sizes{p.batch, 1, p.length, p.channels}, kept{p.batch, 1, u.state_length, p.channels};
  p.y = checked_view(y, sizes);
  u.state = checked_view(state, kept);
  check_apart(Extent(u.state, kept), p.x, sizes);
  const py::gil_scoped_release release;
  cpu_kernels().conv_update(u);
}

// The axes of `StateUpdateParams`, or all without heads and groups, which are then 1.
void state_update(const py::handle& state, const py::handle& x, const py::handle& delta, const py::handle& A,
                  const py::handle& B, const py::handle& C, const py::handle& D, const py::handle& z,
                  const py::handle& delta_bias, const py::handle& y, bool wide, bool softplus, int threads) {
  StateUpdateParams p{};
  const py::tuple shape = attribute_of(state, names.shape);
  const bool heads = shape.size() == 4;
  p.batch = int64_at(shape, 0);
  p.heads = heads ? int64_at(shape, 1) : 1;
  p.channels = int64_at(shape, heads ? 2 : 1);
  p.states = int64_at(shape, heads ? 3 : 2);
  p.groups = heads ? size_at(B, 1) : 1;
  p.wide = wide;
  p.softplus = softplus;
  p.threads = threads;
  const Sizes steps{p.batch, 1, p.heads, p.channels}, matrix{p.batch, 1, p.groups, p.states};
  const Sizes parameter{1, 1, p.heads, p.channels};
  p.state = checked_view(state, {p.batch, p.heads, p.channels, p.states});
  p.x = checked_view(x, steps);
  p.delta = checked_view(delta, steps);
  p.z = checked_view(z, steps);
  p.y = checked_view(y, steps);
  p.A = checked_view(A, {p.heads, 1, p.channels, p.states});
  p.B = checked_view(B, matrix);
  p.C = checked_view(C, matrix);
  p.D = checked_view(D, parameter);
  p.delta_bias = checked_view(delta_bias, parameter);
  const Extent extent(p.state, {p.batch, p.heads, p.channels, p.states});
  for (const View* v : {&p.x, &p.delta, &p.z}) check_apart(extent, *v, steps);
  for (const View* v : {&p.B, &p.C}) check_apart(extent, *v, matrix);
  for (const View* v : {&p.D, &p.delta_bias}) check_apart(extent, *v, parameter);
  check_apart(extent, p.A, {p.heads, 1, p.channels, p.states});
  const py::gil_scoped_release release;
  cpu_kernels().state_update(p);
}

// x (R, I) and y (R, O) with 1 to 4 rows, weight (O, I).
void linear(const py::handle& x, const py::handle& weight, const py::handle& bias, const py::handle& y, int threads) {
  LinearParams p{};
  p.rows = size_at(x, 0);
  p.inputs = size_at(weight, 1);
  p.outputs = size_at(weight, 0);
  p.threads = threads;
  if (p.rows < 1 || p.rows > kMostRows) throw std::invalid_argument("x must have 1 to 4 rows");
  p.x = static_cast<const float*>(checked_pointer(x, p.rows * p.inputs, 4));
  p.weight = static_cast<const float*>(checked_pointer(weight, p.outputs * p.inputs, 4));
  p.bias = static_cast<const float*>(checked_pointer(bias, p.outputs, 4));
  p.y = static_cast<float*>(checked_pointer(y, p.rows * p.outputs, 4));
  const py::gil_scoped_release release;
  cpu_kernels().linear(p);
}

}  // namespace

void define_steps(py::module_& m) {
  m.def("conv_forward", &conv_forward);
  m.def("conv_backward", &conv_backward);
  m.def("conv_update", &conv_update);
  m.attr("MOST_ROWS") = kMostRows;
  m.def("linear", &linear);
  m.def("state_update", &state_update);
}

}  // namespace vmddpm
