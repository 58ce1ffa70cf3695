// Reads tensors and attributes of Python objects with raw CPython calls: pybind11's casts are measurable on small
// scans.
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "../common/tensor.h"

namespace vmddpm {

namespace py = pybind11;

// Interned names of attributes, and Python objects that values are compared with by address.
struct Names {
#define VMDDPM_NAMES(X)                                                                                             \
  X(data_ptr) X(dtype) X(stride) X(shape) X(storage_offset) X(untyped_storage) X(nbytes) X(numel)                   \
  X(layout) X(is_cpu) X(device) X(new_empty)                                                                      \
  X(batch) X(routes) X(length) X(channels) X(states) X(wide) X(sum_routes) X(delta_softplus) X(zoh)                 \
  X(x) X(delta) X(A) X(B) X(C) X(D) X(delta_bias) X(initial_state) X(dt_proj) X(table)                              \
  X(y) X(last_state) X(checkpoints) X(narrow_y)                                                                     \
  X(dx) X(ddelta) X(dA) X(dB) X(dC) X(dD) X(ddelta_bias) X(dinitial_state) X(ddt_proj)     \
  X(narrow_dx)
#define VMDDPM_DECLARE(name) PyObject* name;
  VMDDPM_NAMES(VMDDPM_DECLARE)
#undef VMDDPM_DECLARE
  std::array<PyObject*, 4> floats;   // torch's dtypes in the order of DType
  std::array<PyObject*, 2> integers;
  std::array<PyObject*, 2> tensors;  // Tensor and Parameter, but no subclasses
  PyObject* strided;
  PyTypeObject* scan_sizes;
};
extern Names names;
void intern_names();

inline py::object owned(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

inline py::object attribute_of(const py::handle& object, PyObject* name) {
  return owned(PyObject_GetAttr(object.ptr(), name));
}

inline py::object call(const py::handle& object, PyObject* method) {
  return owned(PyObject_CallMethodNoArgs(object.ptr(), method));
}

inline py::object call(const py::handle& object, PyObject* method, const py::handle& argument) {
  return owned(PyObject_CallMethodOneArg(object.ptr(), method, argument.ptr()));
}

inline int64_t to_int64(const py::handle& value) {
  const int64_t result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

inline int64_t int64_at(const py::tuple& tuple, size_t i) {
  return to_int64(PyTuple_GET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i)));
}

inline bool to_bool(const py::handle& value) { return value.ptr() == Py_True; }

// Whether `object` is one of `objects`, by address.
template <size_t kCount>
bool one_of(const std::array<PyObject*, kCount>& objects, const void* object) {
  for (const PyObject* each : objects) {
    if (each == object) return true;
  }
  return false;
}

// Whether the object is a dense tensor and not an instance of a subclass.
bool is_dense(const py::handle& tensor);

// Reads the dtype; returns whether the kernels support it.
bool read_dtype(const py::handle& tensor, DType& type);

// The address of a contiguous tensor; null for None and for an empty tensor. Throws if there are elements but no
// memory.
void* pointer(const py::handle& tensor);

// The view of a tensor (B, K, L, C), (B, L, C), which is one image for all routes, or (C,); an empty view for None.
View view(const py::handle& tensor);

// Throws if the storage ends before `elements` elements from the tensor's first one: it may have been resized since the
// tensor was saved.
void check_storage(const py::handle& tensor, int64_t elements, int64_t element_size);

// Throws if the storage ends before the last element of a view with these sizes.
void check_view_storage(const View& view, const py::handle& tensor, const std::array<int64_t, 4>& sizes);

// The address of a contiguous tensor with a checked storage; null for None.
void* checked_pointer(const py::handle& tensor, int64_t elements, int64_t element_size);

}  // namespace vmddpm
