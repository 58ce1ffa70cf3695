// The functions of the extension. They read the attributes of Python objects and fill the parameters of the kernels.
// Shapes and dtypes are not validated here: callers must pass checked tensors (vmddpm_kernels/scan_inputs.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "dispatch.h"
#include "common/probe.h"
#include "cross_scan/cross_scan.h"
#include "python/functions.h"
#ifdef VMDDPM_CUDA
#include "selective_scan/cuda.h"
#endif

using namespace vmddpm;

namespace {

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

// The Python classes are defined in vmddpm_kernels/scan_inputs.py and backends/extension.py.

void fill_sizes(ScanParams& p, const py::handle& sizes) {
  p.batch = to_int64(attribute_of(sizes, names.batch));
  p.routes = to_int64(attribute_of(sizes, names.routes));
  p.length = to_int64(attribute_of(sizes, names.length));
  p.channels = to_int64(attribute_of(sizes, names.channels));
  p.states = to_int64(attribute_of(sizes, names.states));
  p.wide = to_bool(attribute_of(sizes, names.wide));
  p.sum_routes = to_bool(attribute_of(sizes, names.sum_routes));
}

void fill_options(ScanParams& p, const py::handle& options) {
  p.softplus = to_bool(attribute_of(options, names.delta_softplus));
  p.zoh = to_bool(attribute_of(options, names.zoh));
}

View checked_view(const py::handle& tensor, const ScanParams& p, int64_t columns) {
  const View v = view(tensor);
  check_view_storage(v, tensor, {p.batch, p.routes, p.length, columns});
  return v;
}

ScanParams scan_params(const py::handle& inputs, const py::handle& options, const py::handle& sizes, int threads) {
  ScanParams p{};
  fill_sizes(p, sizes);
  fill_options(p, options);
  p.threads = threads;
  const auto image = [&](PyObject* name, int64_t columns) { return checked_view(attribute_of(inputs, name), p, columns); };
  const auto contiguous = [&](PyObject* name, int64_t elements, int64_t element_size) {
    return checked_pointer(attribute_of(inputs, name), elements, element_size);
  };
  const int64_t parameters = p.routes * p.channels, float_size = p.wide ? 8 : 4;
  const py::object dt_proj = attribute_of(inputs, names.dt_proj);
  p.rank = dt_proj.is_none() ? 0 : int64_at(attribute_of(dt_proj, names.shape), 2);
  p.dt_proj = checked_pointer(dt_proj, parameters * p.rank, float_size);
  p.x = image(names.x, p.channels);
  p.delta = image(names.delta, p.rank > 0 ? p.rank : p.channels);
  p.A = contiguous(names.A, parameters * p.states, float_size);
  p.B = image(names.B, p.states);
  p.C = image(names.C, p.states);
  p.D = contiguous(names.D, parameters, float_size);
  p.delta_bias = contiguous(names.delta_bias, parameters, float_size);
  p.initial_state = contiguous(names.initial_state, p.batch * parameters * p.states, float_size);
  p.table = static_cast<int32_t*>(contiguous(names.table, p.routes * p.length, sizeof(int32_t)));
  return p;
}

void fill_outputs(ScanParams& p, const py::handle& outputs) {
  p.y = view(attribute_of(outputs, names.y));
  p.last_state = pointer(attribute_of(outputs, names.last_state));
  p.checkpoints = pointer(attribute_of(outputs, names.checkpoints));
  p.narrow_y = view(attribute_of(outputs, names.narrow_y));
}

ScanGradParams grad_params(const py::handle& inputs, const py::handle& options, const py::handle& sizes,
                           const py::handle& dy, const py::handle& dlast_state, const py::handle& checkpoints,
                           const py::handle& grads, int threads) {
  ScanGradParams g;
  g.forward = scan_params(inputs, options, sizes, threads);
  const ScanParams& p = g.forward;
  const int64_t float_size = p.wide ? 8 : 4;
  g.forward.checkpoints = checked_pointer(checkpoints, to_int64(call(checkpoints, names.numel)), float_size);
  g.dy = checked_view(dy, p, p.channels);
  g.dlast_state = checked_pointer(dlast_state, p.batch * p.routes * p.channels * p.states, float_size);
  g.only_input = attribute_of(grads, names.ddelta).is_none();
  g.dx = view(attribute_of(grads, names.dx));
  g.ddelta = view(attribute_of(grads, names.ddelta));
  g.dA = pointer(attribute_of(grads, names.dA));
  g.dB = pointer(attribute_of(grads, names.dB));
  g.dC = pointer(attribute_of(grads, names.dC));
  g.dD = pointer(attribute_of(grads, names.dD));
  g.ddelta_bias = pointer(attribute_of(grads, names.ddelta_bias));
  g.dinitial_state = pointer(attribute_of(grads, names.dinitial_state));
  g.ddt_proj = pointer(attribute_of(grads, names.ddt_proj));
  g.narrow_dx = view(attribute_of(grads, names.narrow_dx));
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

// image is (B, K or 1, L, C), sequences (B, K, L, C). Without a table, the regular routes `scans` over height x width
// pixels.
CrossScanParams cross_params(const py::handle& image, const py::handle& table, int64_t height, int64_t width,
                             int32_t scans, const py::handle& sequences, int threads) {
  const py::tuple shape = attribute_of(sequences, names.shape), image_shape = attribute_of(image, names.shape);
  CrossScanParams p{int64_at(shape, 0), int64_at(shape, 1), int64_at(shape, 2), int64_at(shape, 3),
                    nullptr, view(image), view(sequences), false, threads, height, width, scans};
  if (int64_at(image_shape, 1) == 1) p.image.stride[1] = 0;
  p.table = static_cast<int32_t*>(checked_pointer(table, p.routes * p.length, sizeof(int32_t)));
  check_view_storage(p.image, image, {p.batch, p.routes, p.length, p.channels});
  check_view_storage(p.sequences, sequences, {p.batch, p.routes, p.length, p.channels});
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
                 const py::handle& sequences, int threads, bool sum_routes) {
  CrossScanParams p = cross_params(image, table, height, width, scans, sequences, threads);
  p.sum_routes = sum_routes;
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
                  const py::handle& segment_delta, const py::handle& images, int device, uintptr_t stream) {
  ScanParams p = scan_params(inputs, options, sizes, 1);
  fill_outputs(p, outputs);
  const GpuScanWorkspace work{pointer(segment_state), pointer(segment_delta), pointer(images), nullptr, {}, {}};
  const py::gil_scoped_release release;
  cuda_scan_forward(p, plan, work, device, reinterpret_cast<void*>(stream));
}

void cuda_backward(const py::handle& inputs, const py::handle& options, const py::handle& sizes, const py::handle& dy,
                   const py::handle& dlast_state, const py::handle& checkpoints, const py::handle& grads,
                   const GpuScanPlan& plan, const py::handle& segment_state, const py::handle& segment_delta,
                   const py::handle& images, const py::handle& matrices, int device, uintptr_t stream) {
  const ScanGradParams g = grad_params(inputs, options, sizes, dy, dlast_state, checkpoints, grads, 1);
  const GpuScanWorkspace work{pointer(segment_state), pointer(segment_delta), pointer(images), pointer(matrices),
                         view(attribute_of(grads, names.dB)).dtype, view(attribute_of(grads, names.dC)).dtype};
  const py::gil_scoped_release release;
  cuda_scan_backward(g, plan, work, device, reinterpret_cast<void*>(stream));
}

void cuda_scan(const py::handle& image, const py::handle& table, int64_t height, int64_t width, int32_t scans,
               const py::handle& sequences, const py::handle& inverse, std::pair<int64_t, int64_t> limits, int device,
               uintptr_t stream) {
  const CrossScanParams p = cross_params(image, table, height, width, scans, sequences, 1);
  int32_t* const inverse_table = static_cast<int32_t*>(pointer(inverse));
  const py::gil_scoped_release release;
  cross_scan_cuda(p, inverse_table, {limits.first, limits.second}, device, reinterpret_cast<void*>(stream));
}

void cuda_merge(const py::handle& image, const py::handle& table, int64_t height, int64_t width, int32_t scans,
                const py::handle& sequences, bool sum_routes, const py::handle& inverse, std::pair<int64_t, int64_t> limits,
                int device, uintptr_t stream) {
  CrossScanParams p = cross_params(image, table, height, width, scans, sequences, 1);
  p.sum_routes = sum_routes;
  int32_t* const inverse_table = static_cast<int32_t*>(pointer(inverse));
  const py::gil_scoped_release release;
  cross_merge_cuda(p, inverse_table, {limits.first, limits.second}, device, reinterpret_cast<void*>(stream));
}

std::tuple<std::string, std::string, int, int> probe(int device) {
  const py::gil_scoped_release release;
  GpuProbe found = cuda_probe(device);
  return {std::move(found.error), std::move(found.message), found.driver, found.built};
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
      .def_readonly("walks", &GpuScanPlan::walks)
      .def_readonly("images", &GpuScanPlan::images)
      .def_readonly("matrices", &GpuScanPlan::matrices)
      .def_readonly("part", &GpuScanPlan::part);
  m.def("probe", &probe);
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
  intern_names();
  py::class_<ScanPlan>(m, "ScanPlan", py::module_local())
      .def_readonly("checkpoints", &ScanPlan::checkpoints)
      .def_readonly("lanes", &ScanPlan::lanes)
      .def_readonly("blocks", &ScanPlan::blocks)
      .def_readonly("pieces", &ScanPlan::pieces);
  m.def("describe", &describe);
  m.attr("CHUNK") = kLeastChunk;
  m.def("scan_sizes", &scan_sizes);
  m.def("lanes", &lanes);
  m.def("scan_plan", &scan_plan);
  m.def("scan_forward", &scan_forward);
  m.def("scan_backward", &scan_backward);
  m.def("cross_scan", &cross_scan);
  m.def("cross_merge", &cross_merge);
  m.def("cross_image", &cross_image);
  define_norms(m);
  define_steps(m);
#ifdef VMDDPM_CUDA
  define_cuda(m.def_submodule("cuda", "The same on a GPU."));
#endif
}
