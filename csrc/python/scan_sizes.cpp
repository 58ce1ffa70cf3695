// The quick answer to whether the tensors of a scan fit together.
#include <array>
#include <initializer_list>

#include "tensors.h"

namespace vmddpm {

namespace {

// Of `MAX_STATES` in vmddpm_kernels/checks.py.
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

// Tensors of one device, x's.
class Device {
 public:
  explicit Device(const py::handle& x) : is_cpu_(flag(get(x, names.is_cpu))) {
    if (!is_cpu_) device_ = get(x, names.device);
  }

  bool holds(const py::handle& tensor) const {
    if (is_cpu_) return flag(get(tensor, names.is_cpu));
    return PyObject_RichCompareBool(get(tensor, names.device).ptr(), device_.ptr(), Py_EQ) == 1;
  }

 private:
  bool is_cpu_;
  py::object device_;
};

template <size_t kCount>
bool one_of(const std::array<PyObject*, kCount>& objects, const void* object) {
  for (const PyObject* each : objects) {
    if (each == object) return true;
  }
  return false;
}

// Whether a dense tensor and nothing more: a subclass may be anything.
bool is_dense(const py::handle& tensor) {
  return one_of(names.tensors, Py_TYPE(tensor.ptr())) && get(tensor, names.layout).ptr() == names.strided;
}

bool shape_of(const py::handle& tensor, Shape& shape) {
  if (!is_dense(tensor)) return false;
  const py::tuple sizes = get(tensor, names.shape);
  shape.axes = sizes.size();
  if (shape.axes > shape.sizes.size()) return false;
  for (size_t i = 0; i < shape.axes; ++i) shape.sizes[i] = number_at(sizes, i);
  return true;
}

// Whether of one of the dtypes and on the device.
template <size_t kCount>
bool fits(const py::handle& tensor, const Device& device, const std::array<PyObject*, kCount>& dtypes) {
  return one_of(dtypes, get(tensor, names.dtype).ptr()) && device.holds(tensor);
}

bool is_double(const py::handle& tensor) {
  return get(tensor, names.dtype).ptr() == names.floats[static_cast<size_t>(DType::f64)];
}

py::object as_scan_sizes(int64_t batch, int64_t routes, int64_t length, int64_t channels, int64_t states, bool wide,
                         bool sum_routes) {
  static PyObject* const type =
      py::object(py::module_::import("vmddpm_kernels.scan_inputs").attr("ScanSizes")).release().ptr();
  const py::tuple fields = py::make_tuple(batch, routes, length, channels, states, wide, sum_routes);
  const py::tuple arguments = checked(PyTuple_Pack(1, fields.ptr()));
  // What ScanSizes(*fields) comes to, without its function in Python.
  return checked(PyTuple_Type.tp_new(reinterpret_cast<PyTypeObject*>(type), arguments.ptr(), nullptr));
}

py::object sizes_of(const py::handle& inputs) {
  const py::object x = get(inputs, names.x), delta = get(inputs, names.delta), A = get(inputs, names.A);
  Shape image, pixels, transition;
  if (!shape_of(x, image) || !shape_of(delta, pixels) || !shape_of(A, transition)) return py::none();
  if (pixels.axes != 4 || transition.axes != 3) return py::none();
  const auto [batch, routes, length, channels] = pixels.sizes;
  const int64_t states = transition.sizes[2];
  const bool sum_routes = image.axes == 3;
  if (routes < 1 || states < 1 || states > kMostStates) return py::none();
  if (!(image == (sum_routes ? Shape{batch, length, channels} : pixels))) return py::none();
  if (!(transition == Shape{routes, channels, states})) return py::none();

  const Device device(x);
  const Shape matrix{batch, routes, length, states}, parameter{routes, channels}, state{batch, routes, channels, states};
  const struct {
    PyObject* name;
    const Shape& shape;
    bool optional;
  } others[] = {{names.B, matrix, false},         {names.C, matrix, false},
                {names.D, parameter, true},       {names.delta_bias, parameter, true},
                {names.initial_state, state, true}};
  bool wide = false;
  for (const py::object& tensor : {x, delta, A}) {
    if (!fits(tensor, device, names.floats)) return py::none();
    wide = wide || is_double(tensor);
  }
  for (const auto& [name, expected, optional] : others) {
    const py::object tensor = get(inputs, name);
    if (optional && tensor.is_none()) continue;
    Shape shape;
    if (!shape_of(tensor, shape) || !(shape == expected) || !fits(tensor, device, names.floats)) return py::none();
    wide = wide || (!optional && is_double(tensor));
  }
  const py::object table = get(inputs, names.table);
  if (!table.is_none()) {
    Shape shape;
    if (!shape_of(table, shape) || !(shape == Shape{routes, length})) return py::none();
    if (!fits(table, device, names.integers)) return py::none();
  }
  return as_scan_sizes(batch, routes, length, channels, states, wide, sum_routes);
}

}  // namespace

py::object scan_sizes(const py::handle& inputs) {
  try {
    return sizes_of(inputs);
  } catch (const py::error_already_set&) {
    return py::none();  // a tensor that will not say
  }
}

}  // namespace vmddpm
