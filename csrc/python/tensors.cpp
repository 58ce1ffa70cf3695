#include "tensors.h"

#include <stdexcept>
#include <string>

namespace vmddpm {

Names names;

void intern_names() {
#define VMDDPM_INTERN(name) names.name = PyUnicode_InternFromString(#name);
  VMDDPM_NAMES(VMDDPM_INTERN)
#undef VMDDPM_INTERN
  const py::module_ torch = py::module_::import("torch");
  const auto attribute = [&](const char* name) { return py::object(torch.attr(name)).release().ptr(); };
  names.floats = {attribute("float32"), attribute("float64"), attribute("float16"), attribute("bfloat16")};
  names.integers = {attribute("int32"), attribute("int64")};
  names.tensors = {attribute("Tensor"), py::object(torch.attr("nn").attr("Parameter")).release().ptr()};
  names.strided = attribute("strided");
  const py::module_ descriptions = py::module_::import("vmddpm_kernels.scan_inputs");
  names.scan_sizes = reinterpret_cast<PyTypeObject*>(py::object(descriptions.attr("ScanSizes")).release().ptr());
}

namespace {

[[noreturn]] void throw_missing_memory(const py::handle& tensor) {
  throw std::invalid_argument("a tensor of shape " + py::str(py::tuple(attribute_of(tensor, names.shape))).cast<std::string>() +
                              " has no memory for all of its elements: its storage was resized, or it wraps another "
                              "tensor");
}

}  // namespace

bool is_dense(const py::handle& tensor) {
  return one_of(names.tensors, Py_TYPE(tensor.ptr())) && attribute_of(tensor, names.layout).ptr() == names.strided;
}

bool read_dtype(const py::handle& tensor, DType& type) {
  const py::object given = attribute_of(tensor, names.dtype);
  for (size_t i = 0; i < names.floats.size(); ++i) {
    if (given.ptr() != names.floats[i]) continue;
    type = static_cast<DType>(i);
    return true;
  }
  return false;
}

void* pointer(const py::handle& tensor) {
  if (tensor.is_none()) return nullptr;
  void* const data = PyLong_AsVoidPtr(call(tensor, names.data_ptr).ptr());
  if (!data && to_int64(call(tensor, names.numel)) != 0) throw_missing_memory(tensor);
  return data;
}

View view(const py::handle& tensor) {
  View v;
  if (tensor.is_none()) return v;
  v.data = pointer(tensor);
  if (!read_dtype(tensor, v.dtype)) {
    throw std::invalid_argument("a tensor must be float16, bfloat16, float32 or float64");
  }
  const py::tuple strides = call(tensor, names.stride);
  const size_t axes = strides.size();
  if (axes == 1) {
    v.stride[3] = int64_at(strides, 0);
    return v;
  }
  v.stride[0] = int64_at(strides, 0);
  v.stride[1] = axes == 3 ? 0 : int64_at(strides, 1);
  v.stride[2] = int64_at(strides, axes - 2);
  v.stride[3] = int64_at(strides, axes - 1);
  return v;
}

void check_storage(const py::handle& tensor, int64_t elements, int64_t element_size) {
  const int64_t needed = (to_int64(call(tensor, names.storage_offset)) + elements) * element_size;
  if (to_int64(call(call(tensor, names.untyped_storage), names.nbytes)) < needed) throw_missing_memory(tensor);
}

void check_view_storage(const View& v, const py::handle& tensor, const std::array<int64_t, 4>& sizes) {
  if (!v.data) return;
  int64_t last = 0;
  for (size_t axis = 0; axis < 4; ++axis) last += (sizes[axis] - 1) * v.stride[axis];
  check_storage(tensor, last + 1, size_of(v.dtype));
}

void* checked_pointer(const py::handle& tensor, int64_t elements, int64_t element_size) {
  void* const data = pointer(tensor);
  if (data) check_storage(tensor, elements, element_size);
  return data;
}

}  // namespace vmddpm
