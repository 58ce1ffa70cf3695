// The only file that knows Python. Tensors are asked for their addresses, types and strides by name, as Python would; what
// they say is trusted, as vmddpm_kernels/backends/extension.py passes on checked tensors.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/dispatch.h"
#include "cross_scan/cross_scan.h"
#ifdef VMDDPM_CUDA
#include "selective_scan/cuda.h"
#endif

namespace py = pybind11;
using namespace vmddpm;

namespace {

// Names in the form that Python compares by address, and torch's dtypes in the order of DType.
struct Known {
  PyObject *data_ptr, *dtype, *stride, *shape;
  std::array<PyObject*, 4> dtypes;
} known;

void learn_names() {
  known.data_ptr = PyUnicode_InternFromString("data_ptr");
  known.dtype = PyUnicode_InternFromString("dtype");
  known.stride = PyUnicode_InternFromString("stride");
  known.shape = PyUnicode_InternFromString("shape");
  const py::module_ torch = py::module_::import("torch");
  const char* const names[] = {"float32", "float64", "float16", "bfloat16"};
  for (size_t i = 0; i < known.dtypes.size(); ++i) {
    known.dtypes[i] = py::object(torch.attr(names[i])).release().ptr();
  }
}

py::object checked(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// Items of a tuple, borrowed, and as a number: a small scan has a hundred, and what pybind11 does for each would show.
py::handle item(const py::tuple& tuple, size_t i) { return PyTuple_GET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i)); }

int64_t number(const py::handle& value) {
  const int64_t result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

// Null for None.
template <typename T = void>
T* pointer(const py::handle& tensor) {
  if (tensor.is_none()) return nullptr;
  return static_cast<T*>(PyLong_AsVoidPtr(checked(PyObject_CallMethodNoArgs(tensor.ptr(), known.data_ptr)).ptr()));
}

DType dtype(const py::handle& tensor) {
  const py::object type = checked(PyObject_GetAttr(tensor.ptr(), known.dtype));
  for (size_t i = 0; i < known.dtypes.size(); ++i) {
    if (type.ptr() == known.dtypes[i]) return static_cast<DType>(i);
  }
  throw std::invalid_argument("a tensor must be float16, bfloat16, float32 or float64");
}

// A tensor (B, K, L, C), or (B, L, C), one image for all routes; nothing for None.
View view(const py::handle& tensor) {
  View v;
  if (tensor.is_none()) return v;
  v.data = pointer(tensor);
  v.dtype = dtype(tensor);
  const py::tuple strides = checked(PyObject_CallMethodNoArgs(tensor.ptr(), known.stride));
  const size_t axes = strides.size();
  v.stride[0] = number(item(strides, 0));
  v.stride[1] = axes == 3 ? 0 : number(item(strides, 1));
  v.stride[2] = number(item(strides, axes - 2));
  v.stride[3] = number(item(strides, axes - 1));
  return v;
}

// Throws (ValueError in Python) unless every row of the table is a permutation of 0..length-1.
void check_table(const int32_t* table, int64_t routes, int64_t length) {
  if (!table) return;
  std::vector<int64_t> visited_by(static_cast<size_t>(length), -1);
  for (int64_t k = 0; k < routes; ++k) {
    for (int64_t l = 0; l < length; ++l) {
      const int32_t pixel = table[k * length + l];
      if (pixel < 0 || pixel >= length || visited_by[static_cast<size_t>(pixel)] == k) {
        throw std::invalid_argument("every row of table must hold each of 0.." + std::to_string(length - 1) +
                                    " exactly once; table[" + std::to_string(k) + ", " + std::to_string(l) + "] is " +
                                    std::to_string(pixel) +
                                    (pixel < 0 || pixel >= length ? ", out of range" : ", seen before in its row"));
      }
      visited_by[static_cast<size_t>(pixel)] = k;
    }
  }
}

// (batch, routes, length, channels, states, wide, softplus, zoh, shared, threads)
ScanParams sized(const py::tuple& sizes) {
  ScanParams p{};
  p.batch = number(item(sizes, 0));
  p.routes = number(item(sizes, 1));
  p.length = number(item(sizes, 2));
  p.channels = number(item(sizes, 3));
  p.states = number(item(sizes, 4));
  p.wide = number(item(sizes, 5)) != 0;
  p.softplus = number(item(sizes, 6)) != 0;
  p.zoh = number(item(sizes, 7)) != 0;
  p.shared = number(item(sizes, 8)) != 0;
  p.threads = static_cast<int>(number(item(sizes, 9)));
  return p;
}

// (x, delta, A, B, C, D, delta_bias, initial_state, table)
ScanParams scan_params(const py::tuple& sizes, const py::tuple& tensors) {
  ScanParams p = sized(sizes);
  p.x = view(item(tensors, 0));
  p.delta = view(item(tensors, 1));
  p.A = pointer(item(tensors, 2));
  p.B = view(item(tensors, 3));
  p.C = view(item(tensors, 4));
  p.D = pointer(item(tensors, 5));
  p.delta_bias = pointer(item(tensors, 6));
  p.initial_state = pointer(item(tensors, 7));
  p.table = pointer<const int32_t>(item(tensors, 8));
  return p;
}

// (y, last_state, checkpoints, and on a CPU narrow_y)
ScanParams forward_params(const py::tuple& sizes, const py::tuple& tensors, const py::tuple& outputs) {
  ScanParams p = scan_params(sizes, tensors);
  p.y = view(item(outputs, 0));
  p.last_state = pointer(item(outputs, 1));
  p.checkpoints = pointer(item(outputs, 2));
  if (outputs.size() > 3) p.narrow_y = view(item(outputs, 3));
  return p;
}

// incoming (checkpoints, dy, dlast_state)
// grads (dx, ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state, and on a CPU narrow_dx)
ScanGradParams backward_params(const py::tuple& sizes, const py::tuple& tensors, const py::tuple& incoming,
                               const py::tuple& grads) {
  ScanGradParams g;
  g.forward = scan_params(sizes, tensors);
  g.forward.checkpoints = pointer(item(incoming, 0));
  g.dy = view(item(incoming, 1));
  g.dlast_state = pointer(item(incoming, 2));
  g.dx = view(item(grads, 0));
  g.ddelta = view(item(grads, 1));
  g.dA = pointer(item(grads, 2));
  g.dB = pointer(item(grads, 3));
  g.dC = pointer(item(grads, 4));
  g.dD = pointer(item(grads, 5));
  g.ddelta_bias = pointer(item(grads, 6));
  g.dinitial_state = pointer(item(grads, 7));
  if (grads.size() > 8) g.narrow_dx = view(item(grads, 8));
  return g;
}

ScanPlan scan_plan(const py::tuple& sizes) { return cpu_kernels().scan_plan(sized(sizes)); }

void scan_forward(const py::tuple& sizes, const py::tuple& tensors, const py::tuple& outputs) {
  const ScanParams p = forward_params(sizes, tensors, outputs);
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cpu_kernels().scan_forward(p);
}

void scan_backward(const py::tuple& sizes, const py::tuple& tensors, const py::tuple& incoming,
                   const py::tuple& grads) {
  const ScanGradParams g = backward_params(sizes, tensors, incoming, grads);
  const py::gil_scoped_release release;
  cpu_kernels().scan_backward(g);
}

// image (B, K or 1, L, C), sequences (B, K, L, C)
CrossScanParams cross_params(const py::handle& image, const py::handle& table, const py::handle& sequences,
                             int threads) {
  const py::tuple shape = checked(PyObject_GetAttr(sequences.ptr(), known.shape));
  const py::tuple image_shape = checked(PyObject_GetAttr(image.ptr(), known.shape));
  CrossScanParams p{shape[0].cast<int64_t>(), shape[1].cast<int64_t>(), shape[2].cast<int64_t>(),
                    shape[3].cast<int64_t>(), pointer<const int32_t>(table), view(image), view(sequences), false,
                    threads};
  if (image_shape[1].cast<int64_t>() == 1) p.image.stride[1] = 0;
  return p;
}

void cross_scan(const py::handle& image, const py::handle& table, const py::handle& sequences, int threads) {
  const CrossScanParams p = cross_params(image, table, sequences, threads);
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cross_scan_cpu(p);
}

void cross_merge(const py::handle& image, const py::handle& table, const py::handle& sequences, int threads, bool sum) {
  CrossScanParams p = cross_params(image, table, sequences, threads);
  p.sum = sum;
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cross_merge_cpu(p);
}

#ifdef VMDDPM_CUDA

// (device, stream, segment_state, segment_delta)
struct GpuCall {
  int device;
  void* stream;
  GpuScanWork work;
  explicit GpuCall(const py::tuple& call)
      : device(call[0].cast<int>()),
        stream(reinterpret_cast<void*>(call[1].cast<uintptr_t>())),
        work{pointer(call[2]), pointer(call[3])} {}
};

GpuScanPlan cuda_plan(const py::tuple& sizes, const py::tuple& limits, bool backward) {
  return cuda_scan_plan(sized(sizes), {limits[0].cast<int64_t>(), limits[1].cast<int64_t>()}, backward);
}

void cuda_forward(const py::tuple& sizes, const py::tuple& tensors, const py::tuple& outputs, const GpuScanPlan& plan,
                  const py::tuple& call) {
  const ScanParams p = forward_params(sizes, tensors, outputs);
  const GpuCall gpu(call);
  const py::gil_scoped_release release;
  cuda_scan_forward(p, plan, gpu.work, gpu.device, gpu.stream);
}

void cuda_backward(const py::tuple& sizes, const py::tuple& tensors, const py::tuple& incoming, const py::tuple& grads,
                   const GpuScanPlan& plan, const py::tuple& call) {
  const ScanGradParams g = backward_params(sizes, tensors, incoming, grads);
  const GpuCall gpu(call);
  const py::gil_scoped_release release;
  cuda_scan_backward(g, plan, gpu.work, gpu.device, gpu.stream);
}

void cuda_scan(const py::handle& image, const py::handle& table, const py::handle& sequences, int device,
               uintptr_t stream) {
  const CrossScanParams p = cross_params(image, table, sequences, 1);
  const py::gil_scoped_release release;
  cross_scan_cuda(p, device, reinterpret_cast<void*>(stream));
}

void cuda_merge(const py::handle& image, const py::handle& table, const py::handle& sequences, bool sum,
                const py::handle& inverse, int device, uintptr_t stream) {
  CrossScanParams p = cross_params(image, table, sequences, 1);
  p.sum = sum;
  int32_t* const inverse_table = pointer<int32_t>(inverse);
  const py::gil_scoped_release release;
  cross_merge_cuda(p, inverse_table, device, reinterpret_cast<void*>(stream));
}

void define_cuda(py::module_ m) {
  py::class_<GpuScanPlan>(m, "ScanPlan", py::module_local())
      .def_readonly("states_per_thread", &GpuScanPlan::states_per_thread)
      .def_readonly("slices", &GpuScanPlan::slices)
      .def_readonly("tiles", &GpuScanPlan::tiles)
      .def_readonly("groups", &GpuScanPlan::groups)
      .def_readonly("passes", &GpuScanPlan::passes)
      .def_readonly("segments", &GpuScanPlan::segments)
      .def_readonly("chunks", &GpuScanPlan::chunks)
      .def_readonly("loops_routes", &GpuScanPlan::loops_routes);
  m.def("scan_plan", &cuda_plan);
  m.def("scan_forward", &cuda_forward);
  m.def("scan_backward", &cuda_backward);
  m.def("cross_scan", &cuda_scan);
  m.def("cross_merge", &cuda_merge);
  m.attr("architectures") = VMDDPM_CUDA;
}

#endif

std::string describe() {
  std::string text = std::string("C++, ") + cpu_kernels().isa;
#ifdef _OPENMP
  text += ", OpenMP";
#else
  text += ", one thread (built without OpenMP)";
#endif
  return text;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels of vmddpm_kernels; see vmddpm_kernels/backends/extension.py.";
  learn_names();
  py::class_<ScanPlan>(m, "ScanPlan", py::module_local())
      .def_readonly("checkpoints", &ScanPlan::checkpoints)
      .def_readonly("lanes", &ScanPlan::lanes)
      .def_readonly("blocks", &ScanPlan::blocks);
  m.def("describe", &describe);
  m.def("scan_plan", &scan_plan);
  m.def("scan_forward", &scan_forward);
  m.def("scan_backward", &scan_backward);
  m.def("cross_scan", &cross_scan);
  m.def("cross_merge", &cross_merge);
#ifdef VMDDPM_CUDA
  define_cuda(m.def_submodule("cuda", "The same on a GPU."));
#endif
}
