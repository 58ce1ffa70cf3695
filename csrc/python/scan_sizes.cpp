// A fast check that the tensors of a scan fit together.
#include <array>
#include <initializer_list>

#include "functions.h"

namespace vmddpm {

namespace {

// `MAX_STATES` of vmddpm_kernels/checks.py.
constexpr int64_t kMostStates = 256;

struct Shape {
  std::array<int64_t, 4> sizes{};
  size_t axes = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> given) {
    for (const int64_t size : given) sizes[axes++] = size;
  }
  bool operator==(const Shape& other) const { return axes == other.axes && sizes == other.sizes; }
};

// Checks that tensors are on the device of x.
class Device {
 public:
  explicit Device(const py::handle& x) : is_cpu_(to_bool(attribute_of(x, names.is_cpu))) {
    if (!is_cpu_) device_ = attribute_of(x, names.device);
  }

  bool holds(const py::handle& tensor) const {
    if (is_cpu_) return to_bool(attribute_of(tensor, names.is_cpu));
    return PyObject_RichCompareBool(attribute_of(tensor, names.device).ptr(), device_.ptr(), Py_EQ) == 1;
  }

 private:
  bool is_cpu_;
  py::object device_;
};

bool shape_of(const py::handle& tensor, Shape& shape) {
  if (!is_dense(tensor)) return false;
  const py::tuple sizes = attribute_of(tensor, names.shape);
  shape.axes = sizes.size();
  if (shape.axes > shape.sizes.size()) return false;
  for (size_t i = 0; i < shape.axes; ++i) shape.sizes[i] = int64_at(sizes, i);
  return true;
}

// The dtype of a tensor if it is on the device and has one of `dtypes`, else null. torch never frees its dtypes.
template <size_t kCount>
const PyObject* dtype_of(const py::handle& tensor, const Device& device, const std::array<PyObject*, kCount>& dtypes) {
  const PyObject* const type = attribute_of(tensor, names.dtype).ptr();
  return one_of(dtypes, type) && device.holds(tensor) ? type : nullptr;
}

// The same, and null if the tensor does not have this shape.
template <size_t kCount>
const PyObject* dtype_of(const py::handle& tensor, const Shape& expected, const Device& device,
                         const std::array<PyObject*, kCount>& dtypes) {
  Shape shape;
  return shape_of(tensor, shape) && shape == expected ? dtype_of(tensor, device, dtypes) : nullptr;
}

py::object as_scan_sizes(int64_t batch, int64_t routes, int64_t length, int64_t channels, int64_t states, bool wide,
                         bool sum_routes) {
  const py::tuple fields = py::make_tuple(batch, routes, length, channels, states, wide, sum_routes);
  const py::tuple arguments = owned(PyTuple_Pack(1, fields.ptr()));
  // ScanSizes(*fields) without calling its Python function.
  return owned(PyTuple_Type.tp_new(names.scan_sizes, arguments.ptr(), nullptr));
}

py::object sizes_of(const py::handle& inputs, const py::handle& dy, const py::handle& dlast_state) {
  const py::object x = attribute_of(inputs, names.x), delta = attribute_of(inputs, names.delta), A = attribute_of(inputs, names.A);
  Shape image, pixels, transition;
  if (!shape_of(x, image) || !shape_of(delta, pixels) || !shape_of(A, transition)) return py::none();
  if (pixels.axes != 4 || transition.axes != 3) return py::none();
  const auto [batch, routes, length, columns] = pixels.sizes;
  const int64_t channels = transition.sizes[1], states = transition.sizes[2];
  const py::object dt_proj = attribute_of(inputs, names.dt_proj);
  const bool sum_routes = image.axes == 3, low_rank = !dt_proj.is_none();
  if (low_rank ? columns < 1 : columns != channels) return py::none();
  if (routes < 1 || states < 1 || states > kMostStates) return py::none();
  if (!(image == (sum_routes ? Shape{batch, length, channels} : Shape{batch, routes, length, channels}))) return py::none();
  if (!(transition == Shape{routes, channels, states})) return py::none();

  const PyObject* const float64 = names.floats[static_cast<size_t>(DType::f64)];
  const Device device(x);
  const Shape matrix{batch, routes, length, states}, parameter{routes, channels}, state{batch, routes, channels, states};
  bool wide = false;
  for (const py::object* tensor : {&x, &delta, &A}) {
    const PyObject* const type = dtype_of(*tensor, device, names.floats);
    if (!type) return py::none();
    wide = wide || type == float64;
  }
  if (low_rank) {
    const PyObject* const type = dtype_of(dt_proj, {routes, channels, columns}, device, names.floats);
    if (!type) return py::none();
    wide = wide || type == float64;
  }
  for (PyObject* const name : {names.B, names.C}) {
    const PyObject* const type = dtype_of(attribute_of(inputs, name), matrix, device, names.floats);
    if (!type) return py::none();
    wide = wide || type == float64;
  }
  const auto fits = [&](const py::handle& tensor, const Shape& shape) {
    return tensor.is_none() || dtype_of(tensor, shape, device, names.floats);
  };
  const py::object table = attribute_of(inputs, names.table);
  if (!fits(attribute_of(inputs, names.D), parameter) || !fits(attribute_of(inputs, names.delta_bias), parameter) ||
      !fits(attribute_of(inputs, names.initial_state), state) || !fits(dy, image) || !fits(dlast_state, state) ||
      !(table.is_none() || dtype_of(table, {routes, length}, device, names.integers))) {
    return py::none();
  }
  return as_scan_sizes(batch, routes, length, channels, states, wide, sum_routes);
}

}  // namespace

py::object scan_sizes(const py::handle& inputs, const py::handle& dy, const py::handle& dlast_state) {
  try {
    return sizes_of(inputs, dy, dlast_state);
  } catch (const py::error_already_set&) {
    return py::none();  // a tensor without these attributes
  }
}

}  // namespace vmddpm
