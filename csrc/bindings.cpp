// The only file that knows Python. It reads the fields of Python's objects by name and fills the parameters of the
// kernels. Shapes and dtypes are not validated here: callers pass checked tensors (vmddpm_kernels/scan_inputs.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
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

// Names as Python compares them, by address, and torch's dtypes in the order of DType. Raw CPython calls here and below:
// pybind11's casts are measurable on small scans.
struct Names {
#define VMDDPM_NAMES(X)                                                                                             \
  X(data_ptr) X(dtype) X(stride) X(shape) X(storage_offset) X(untyped_storage) X(nbytes) X(numel)                   \
  X(batch) X(routes) X(length) X(channels) X(states) X(wide) X(sum_routes) X(delta_softplus) X(zoh)                 \
  X(x) X(delta) X(A) X(B) X(C) X(D) X(delta_bias) X(initial_state) X(table)                                         \
  X(y) X(last_state) X(checkpoints) X(narrow_y)                                                                     \
  X(dx) X(ddelta) X(dA) X(dB) X(dC) X(dD) X(ddelta_bias) X(dinitial_state) X(narrow_dx)
#define VMDDPM_DECLARE(name) PyObject* name;
  VMDDPM_NAMES(VMDDPM_DECLARE)
#undef VMDDPM_DECLARE
  std::array<PyObject*, 4> dtypes;
} names;

void learn_names() {
#define VMDDPM_INTERN(name) names.name = PyUnicode_InternFromString(#name);
  VMDDPM_NAMES(VMDDPM_INTERN)
#undef VMDDPM_INTERN
#undef VMDDPM_NAMES
  const py::module_ torch = py::module_::import("torch");
  const char* const dtypes[] = {"float32", "float64", "float16", "bfloat16"};
  for (size_t i = 0; i < names.dtypes.size(); ++i) names.dtypes[i] = py::object(torch.attr(dtypes[i])).release().ptr();
}

py::object checked(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

py::object get(const py::handle& object, PyObject* name) { return checked(PyObject_GetAttr(object.ptr(), name)); }

py::object call(const py::handle& object, PyObject* method) {
  return checked(PyObject_CallMethodNoArgs(object.ptr(), method));
}

int64_t number(const py::handle& value) {
  const int64_t result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

int64_t number_at(const py::tuple& tuple, size_t i) {
  return number(PyTuple_GET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i)));
}

bool flag(const py::handle& value) { return value.ptr() == Py_True; }

DType dtype(const py::handle& tensor) {
  const py::object type = get(tensor, names.dtype);
  for (size_t i = 0; i < names.dtypes.size(); ++i) {
    if (type.ptr() == names.dtypes[i]) return static_cast<DType>(i);
  }
  throw std::invalid_argument("a tensor must be float16, bfloat16, float32 or float64");
}

int64_t size_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

[[noreturn]] void memory_is_gone(const py::handle& tensor) {
  throw std::invalid_argument("a tensor of shape " + py::str(py::tuple(get(tensor, names.shape))).cast<std::string>() +
                              " has no memory for all of its elements: its storage was resized, or it wraps another "
                              "tensor");
}

// Throws if the tensor's storage ends before its element `last`, counted from the tensor's first: a storage may have been
// resized since the tensor was saved.
void check_storage(const py::handle& tensor, int64_t last, int64_t element_size) {
  const int64_t needed = (number(call(tensor, names.storage_offset)) + last + 1) * element_size;
  if (number(call(call(tensor, names.untyped_storage), names.nbytes)) < needed) memory_is_gone(tensor);
}

// The address of a contiguous tensor; null for None and for a tensor without elements. Throws if there are elements and
// no memory.
void* pointer(const py::handle& tensor, int64_t element_size = 0) {
  if (tensor.is_none()) return nullptr;
  void* const data = PyLong_AsVoidPtr(call(tensor, names.data_ptr).ptr());
  if (!data && number(call(tensor, names.numel)) != 0) memory_is_gone(tensor);
  if (data && element_size) check_storage(tensor, number(call(tensor, names.numel)) - 1, element_size);
  return data;
}

int32_t* table_of(const py::handle& tensor, bool saved = false) {
  return static_cast<int32_t*>(pointer(tensor, saved ? sizeof(int32_t) : 0));
}

// A tensor (B, K, L, C), or (B, L, C), one image for all routes; nothing for None. The storage of a `saved` one is
// checked.
View view(const py::handle& tensor, bool saved = false) {
  View v;
  if (tensor.is_none()) return v;
  v.data = pointer(tensor);
  v.dtype = dtype(tensor);
  const py::tuple strides = call(tensor, names.stride);
  const size_t axes = strides.size();
  v.stride[0] = number_at(strides, 0);
  v.stride[1] = axes == 3 ? 0 : number_at(strides, 1);
  v.stride[2] = number_at(strides, axes - 2);
  v.stride[3] = number_at(strides, axes - 1);
  if (saved && v.data) {
    const py::tuple shape = get(tensor, names.shape);
    int64_t last = 0;
    for (size_t i = 0; i < axes; ++i) last += (number_at(shape, i) - 1) * number_at(strides, i);
    check_storage(tensor, last, size_of(v.dtype));
  }
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

// The objects are those of vmddpm_kernels/scan_inputs.py and of backends/extension.py, field by field.

void fill_sizes(ScanParams& p, const py::handle& sizes) {
  p.batch = number(get(sizes, names.batch));
  p.routes = number(get(sizes, names.routes));
  p.length = number(get(sizes, names.length));
  p.channels = number(get(sizes, names.channels));
  p.states = number(get(sizes, names.states));
  p.wide = flag(get(sizes, names.wide));
  p.sum_routes = flag(get(sizes, names.sum_routes));
}

void fill_options(ScanParams& p, const py::handle& options) {
  p.softplus = flag(get(options, names.delta_softplus));
  p.zoh = flag(get(options, names.zoh));
}

// Of `saved` inputs, those of a backward, the storages are checked.
ScanParams scan_params(const py::handle& inputs, const py::handle& options, const py::handle& sizes, int threads,
                       bool saved = false) {
  ScanParams p{};
  fill_sizes(p, sizes);
  fill_options(p, options);
  p.threads = threads;
  const int64_t acc = !saved ? 0 : p.wide ? 8 : 4;
  p.x = view(get(inputs, names.x), saved);
  p.delta = view(get(inputs, names.delta), saved);
  p.A = pointer(get(inputs, names.A), acc);
  p.B = view(get(inputs, names.B), saved);
  p.C = view(get(inputs, names.C), saved);
  p.D = pointer(get(inputs, names.D), acc);
  p.delta_bias = pointer(get(inputs, names.delta_bias), acc);
  p.initial_state = pointer(get(inputs, names.initial_state), acc);
  p.table = table_of(get(inputs, names.table), saved);
  return p;
}

void fill_outputs(ScanParams& p, const py::handle& outputs) {
  p.y = view(get(outputs, names.y));
  p.last_state = pointer(get(outputs, names.last_state));
  p.checkpoints = pointer(get(outputs, names.checkpoints));
  p.narrow_y = view(get(outputs, names.narrow_y));
}

ScanGradParams grad_params(const py::handle& inputs, const py::handle& options, const py::handle& sizes,
                           const py::handle& dy, const py::handle& dlast_state, const py::handle& checkpoints,
                           const py::handle& grads, int threads) {
  ScanGradParams g;
  g.forward = scan_params(inputs, options, sizes, threads, true);
  g.forward.checkpoints = pointer(checkpoints, g.forward.wide ? 8 : 4);
  g.dy = view(dy);
  g.dlast_state = pointer(dlast_state);
  g.dx = view(get(grads, names.dx));
  g.ddelta = view(get(grads, names.ddelta));
  g.dA = pointer(get(grads, names.dA));
  g.dB = pointer(get(grads, names.dB));
  g.dC = pointer(get(grads, names.dC));
  g.dD = pointer(get(grads, names.dD));
  g.ddelta_bias = pointer(get(grads, names.ddelta_bias));
  g.dinitial_state = pointer(get(grads, names.dinitial_state));
  g.narrow_dx = view(get(grads, names.narrow_dx));
  return g;
}

ScanPlan scan_plan(const py::handle& sizes) {
  ScanParams p{};
  fill_sizes(p, sizes);
  return cpu_kernels().scan_plan(p);
}

int64_t lanes(bool wide) {
  ScanParams p{};
  p.wide = wide;
  return cpu_kernels().scan_plan(p).lanes;
}

void scan_forward(const py::handle& inputs, const py::handle& options, const py::handle& sizes,
                  const py::handle& outputs, int threads) {
  ScanParams p = scan_params(inputs, options, sizes, threads);
  fill_outputs(p, outputs);
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cpu_kernels().scan_forward(p);
}

void scan_backward(const py::handle& inputs, const py::handle& options, const py::handle& sizes, const py::handle& dy,
                   const py::handle& dlast_state, const py::handle& checkpoints, const py::handle& grads, int threads) {
  const ScanGradParams g = grad_params(inputs, options, sizes, dy, dlast_state, checkpoints, grads, threads);
  const py::gil_scoped_release release;
  check_table(g.forward.table, g.forward.routes, g.forward.length);
  cpu_kernels().scan_backward(g);
}

// image (B, K or 1, L, C), sequences (B, K, L, C)
CrossScanParams cross_params(const py::handle& image, const py::handle& table, const py::handle& sequences,
                             int threads) {
  const py::tuple shape = get(sequences, names.shape), image_shape = get(image, names.shape);
  CrossScanParams p{number_at(shape, 0), number_at(shape, 1), number_at(shape, 2), number_at(shape, 3),
                    table_of(table), view(image), view(sequences), false, threads, 0, 0, 0};
  if (number_at(image_shape, 1) == 1) p.image.stride[1] = 0;
  return p;
}

// Without a table: the regular routes `scans` over height x width pixels.
CrossScanParams cross_params(const py::handle& image, const py::handle& table, int64_t height, int64_t width,
                             int32_t scans, const py::handle& sequences, int threads) {
  CrossScanParams p = cross_params(image, table, sequences, threads);
  p.height = height;
  p.width = width;
  p.scans = scans;
  return p;
}

void cross_scan(const py::handle& image, const py::handle& table, int64_t height, int64_t width, int32_t scans,
                const py::handle& sequences, int threads) {
  const CrossScanParams p = cross_params(image, table, height, width, scans, sequences, threads);
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cross_scan_cpu(p);
}

void cross_merge(const py::handle& image, const py::handle& table, int64_t height, int64_t width, int32_t scans,
                 const py::handle& sequences, int threads, bool sum) {
  CrossScanParams p = cross_params(image, table, height, width, scans, sequences, threads);
  p.sum = sum;
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cross_merge_cpu(p);
}

#ifdef VMDDPM_CUDA

GpuScanPlan cuda_plan(const py::handle& sizes, const py::handle& options, std::pair<int64_t, int64_t> limits,
                      bool backward) {
  ScanParams p{};
  fill_sizes(p, sizes);
  fill_options(p, options);
  return cuda_scan_plan(p, {limits.first, limits.second}, backward);
}

void cuda_forward(const py::handle& inputs, const py::handle& options, const py::handle& sizes,
                  const py::handle& outputs, const GpuScanPlan& plan, const py::handle& segment_state,
                  const py::handle& segment_delta, int device, uintptr_t stream) {
  ScanParams p = scan_params(inputs, options, sizes, 1);
  fill_outputs(p, outputs);
  const GpuScanWork work{pointer(segment_state), pointer(segment_delta)};
  const py::gil_scoped_release release;
  cuda_scan_forward(p, plan, work, device, reinterpret_cast<void*>(stream));
}

void cuda_backward(const py::handle& inputs, const py::handle& options, const py::handle& sizes, const py::handle& dy,
                   const py::handle& dlast_state, const py::handle& checkpoints, const py::handle& grads,
                   const GpuScanPlan& plan, const py::handle& segment_state, const py::handle& segment_delta,
                   int device, uintptr_t stream) {
  const ScanGradParams g = grad_params(inputs, options, sizes, dy, dlast_state, checkpoints, grads, 1);
  const GpuScanWork work{pointer(segment_state), pointer(segment_delta)};
  const py::gil_scoped_release release;
  cuda_scan_backward(g, plan, work, device, reinterpret_cast<void*>(stream));
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
  int32_t* const inverse_table = table_of(inverse);
  const py::gil_scoped_release release;
  cross_merge_cuda(p, inverse_table, device, reinterpret_cast<void*>(stream));
}

void define_cuda(py::module_ m) {
  py::class_<GpuScanPlan>(m, "GpuScanPlan", py::module_local())
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
  m.attr("CHUNK") = kGpuChunk;
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
  m.attr("CHUNK") = kLeastChunk;
  m.def("lanes", &lanes);
  m.def("scan_plan", &scan_plan);
  m.def("scan_forward", &scan_forward);
  m.def("scan_backward", &scan_backward);
  m.def("cross_scan", &cross_scan);
  m.def("cross_merge", &cross_merge);
#ifdef VMDDPM_CUDA
  define_cuda(m.def_submodule("cuda", "The same on a GPU."));
#endif
}
