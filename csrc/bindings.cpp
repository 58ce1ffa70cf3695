// The only file that knows Python. A tensor comes in as (address, dtype code, four strides); sizes and pointers are
// trusted here, as vmddpm_kernels/backends/extension.py makes them from checked tensors.
#include <pybind11/pybind11.h>

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

template <typename T = void>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

View view(const py::tuple& tensor) {
  View v;
  v.data = pointer(tensor[0]);
  v.dtype = static_cast<DType>(tensor[1].cast<int32_t>());
  const py::tuple strides = tensor[2];
  for (int i = 0; i < 4; ++i) v.stride[i] = strides[i].cast<int64_t>();
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
ScanParams scan_params(const py::tuple& problem, const py::dict& tensors) {
  ScanParams p;
  p.batch = problem[0].cast<int64_t>();
  p.routes = problem[1].cast<int64_t>();
  p.length = problem[2].cast<int64_t>();
  p.channels = problem[3].cast<int64_t>();
  p.states = problem[4].cast<int64_t>();
  p.wide = problem[5].cast<bool>();
  p.softplus = problem[6].cast<bool>();
  p.zoh = problem[7].cast<bool>();
  p.shared = problem[8].cast<bool>();
  p.threads = problem[9].cast<int>();
  p.x = view(tensors["x"]);
  p.delta = view(tensors["delta"]);
  p.B = view(tensors["B"]);
  p.C = view(tensors["C"]);
  p.A = pointer(tensors["A"]);
  p.D = pointer(tensors["D"]);
  p.delta_bias = pointer(tensors["delta_bias"]);
  p.initial_state = pointer(tensors["initial_state"]);
  p.table = pointer<const int32_t>(tensors["table"]);
  p.checkpoints = nullptr;
  p.last_state = nullptr;
  return p;
}

ScanPlan scan_plan(int64_t batch, int64_t routes, int64_t length, int64_t channels, int64_t states, bool wide,
                   bool shared) {
  ScanParams p{};
  p.batch = batch;
  p.routes = routes;
  p.length = length;
  p.channels = channels;
  p.states = states;
  p.wide = wide;
  p.shared = shared;
  return cpu_kernels().scan_plan(p);
}

void scan_forward(const py::tuple& problem, const py::dict& tensors, const py::tuple& y, uintptr_t last_state,
                  uintptr_t checkpoints) {
  ScanParams p = scan_params(problem, tensors);
  p.y = view(y);
  p.last_state = reinterpret_cast<void*>(last_state);
  p.checkpoints = reinterpret_cast<void*>(checkpoints);
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cpu_kernels().scan_forward(p);
}

ScanGradParams grad_params(const py::tuple& problem, const py::dict& tensors, const py::dict& grads) {
  ScanGradParams g;
  g.forward = scan_params(problem, tensors);
  g.forward.checkpoints = pointer(tensors["checkpoints"]);
  g.dy = grads["dy"].is_none() ? View{} : view(grads["dy"]);
  g.dlast_state = pointer(grads["dlast_state"]);
  g.dx = view(grads["dx"]);
  g.ddelta = view(grads["ddelta"]);
  g.dB = pointer(grads["dB"]);
  g.dC = pointer(grads["dC"]);
  g.dA = pointer(grads["dA"]);
  g.dD = pointer(grads["dD"]);
  g.ddelta_bias = pointer(grads["ddelta_bias"]);
  g.dinitial_state = pointer(grads["dinitial_state"]);
  return g;
}

void scan_backward(const py::tuple& problem, const py::dict& tensors, const py::dict& grads) {
  const ScanGradParams g = grad_params(problem, tensors, grads);
  const py::gil_scoped_release release;
  cpu_kernels().scan_backward(g);
}

CrossScanParams cross_params(int64_t batch, int64_t routes, int64_t length, int64_t channels, uintptr_t table,
                             const py::tuple& image, const py::tuple& sequences, int threads) {
  return {batch, routes, length, channels, reinterpret_cast<const int32_t*>(table), view(image), view(sequences),
          false, threads};
}

void cross_scan(int64_t batch, int64_t routes, int64_t length, int64_t channels, uintptr_t table,
                const py::tuple& image, const py::tuple& sequences, int threads) {
  const CrossScanParams p = cross_params(batch, routes, length, channels, table, image, sequences, threads);
  const py::gil_scoped_release release;
  check_table(p.table, p.routes, p.length);
  cross_scan_cpu(p);
}

void cross_merge(int64_t batch, int64_t routes, int64_t length, int64_t channels, uintptr_t table,
                 const py::tuple& image, const py::tuple& sequences, int threads, bool sum) {
  CrossScanParams p = cross_params(batch, routes, length, channels, table, image, sequences, threads);
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
      : device(call[0].cast<int>()), stream(pointer(call[1])), work{pointer(call[2]), pointer(call[3])} {}
};

GpuScanPlan cuda_plan(const py::tuple& problem, const py::tuple& limits, bool backward) {
  ScanParams p{};
  p.batch = problem[0].cast<int64_t>();
  p.routes = problem[1].cast<int64_t>();
  p.length = problem[2].cast<int64_t>();
  p.channels = problem[3].cast<int64_t>();
  p.states = problem[4].cast<int64_t>();
  p.wide = problem[5].cast<bool>();
  p.zoh = problem[7].cast<bool>();
  p.shared = problem[8].cast<bool>();
  return cuda_scan_plan(p, {limits[0].cast<int64_t>(), limits[1].cast<int64_t>()}, backward);
}

void cuda_forward(const py::tuple& problem, const py::dict& tensors, const py::tuple& y, uintptr_t last_state,
                  uintptr_t checkpoints, const GpuScanPlan& plan, const py::tuple& call) {
  ScanParams p = scan_params(problem, tensors);
  p.y = view(y);
  p.last_state = reinterpret_cast<void*>(last_state);
  p.checkpoints = reinterpret_cast<void*>(checkpoints);
  const GpuCall gpu(call);
  const py::gil_scoped_release release;
  cuda_scan_forward(p, plan, gpu.work, gpu.device, gpu.stream);
}

void cuda_backward(const py::tuple& problem, const py::dict& tensors, const py::dict& grads, const GpuScanPlan& plan,
                   const py::tuple& call) {
  const ScanGradParams g = grad_params(problem, tensors, grads);
  const GpuCall gpu(call);
  const py::gil_scoped_release release;
  cuda_scan_backward(g, plan, gpu.work, gpu.device, gpu.stream);
}

void cuda_scan(int64_t batch, int64_t routes, int64_t length, int64_t channels, uintptr_t table, const py::tuple& image,
               const py::tuple& sequences, int device, uintptr_t stream) {
  const CrossScanParams p = cross_params(batch, routes, length, channels, table, image, sequences, 1);
  const py::gil_scoped_release release;
  cross_scan_cuda(p, device, reinterpret_cast<void*>(stream));
}

void cuda_merge(int64_t batch, int64_t routes, int64_t length, int64_t channels, uintptr_t table, const py::tuple& image,
                const py::tuple& sequences, bool sum, uintptr_t inverse, int device, uintptr_t stream) {
  CrossScanParams p = cross_params(batch, routes, length, channels, table, image, sequences, 1);
  p.sum = sum;
  const py::gil_scoped_release release;
  cross_merge_cuda(p, reinterpret_cast<int32_t*>(inverse), device, reinterpret_cast<void*>(stream));
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
  py::class_<ScanPlan>(m, "ScanPlan", py::module_local())
      .def_readonly("chunks", &ScanPlan::chunks)
      .def_readonly("lanes", &ScanPlan::lanes)
      .def_readonly("blocks", &ScanPlan::blocks)
      .def_readonly("groups", &ScanPlan::sums);
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
