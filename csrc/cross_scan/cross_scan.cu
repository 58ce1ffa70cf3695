// Cross scan and merge on a GPU. Regular routes need no table: sequences of planes use tiles of images, and sequences
// of rows are copied pixel by pixel, in any order. Other kernels serve sequences of planes along a table.
#include "../common/probe.h"
#include "cuda_plan.h"

namespace vmddpm {
namespace gpu {
namespace {

CrossArguments cross_arguments(const CrossScanParams& p, bool shared_image, int32_t* inverse) {
  CrossArguments a{p.batch, p.routes, p.length, p.channels, p.table, nullptr, 1, static_cast<int32_t>(p.length), p.scans,
                   p.image, p.sequences, shared_image};
  if (!p.table) {
    a.height = static_cast<int32_t>(p.height);
    a.width = static_cast<int32_t>(p.width);
  }
  // The stride of an axis of size one is arbitrary: make it canonical.
  for (View* view : {&a.image, &a.sequences}) {
    if (p.length == 1) view->stride[2] = 1;
    if (p.channels == 1 && view->stride[2] != 1) view->stride[3] = 1;
    if (p.channels == 1 && view->stride[2] == 1) view->stride[3] = p.length;
  }
  a.inverse = inverse;
  return a;
}

void invert(CrossArguments& a, void* stream) {
  if (a.table) {
    launch("invert_table", &invert_table, ceil_div(a.routes * a.length, kTableThreads), kTableThreads, 0, stream, a);
  } else {
    a.inverse = nullptr;
  }
}

template <typename Bits, int n>
void scan_rows_of(const RowPlan& plan, void* stream) {
  const auto kernel = plan.turned ? &scan_rows<Bits, n, true> : &scan_rows<Bits, n, false>;
  launch("cross_scan_rows", kernel, plan.blocks, kRowThreads, plan.shared_bytes, stream, plan.arguments);
}

template <typename Bits>
void scan_of(CrossArguments a, GpuLimits limits, void* stream) {
  if (!along_steps(a.sequences)) {
    invert(a, stream);
    const RowPlan plan = plan_rows(a, sizeof(Bits));
    plan.in_vectors ? scan_rows_of<Bits, Vector<Bits>::kCount>(plan, stream) : scan_rows_of<Bits, 1>(plan, stream);
  } else if (!a.table) {
    const PlanePlan plan = plan_planes(a, sizeof(Bits), sizeof(Bits), limits);
    launch("cross_scan_planes", &scan_planes<Bits>, plan.blocks, plan.threads, plan.shared_bytes, stream, plan.arguments);
  } else {
    const TablePlan plan = plan_table(a, sizeof(Bits), a.routes);
    if (plan.plane_blocks > 0) {
      launch("cross_scan_table_planes", &scan_table_planes<Bits>, plan.plane_blocks, kTableThreads, plan.plane_bytes,
             stream, plan.arguments);
    } else {
      launch("cross_scan_tiles", &scan_tiles<Bits>, plan.tile_blocks, kTableThreads, plan.tile_bytes, stream,
             plan.arguments);
    }
  }
}

template <typename Acc, typename Element, int n>
void merge_rows_of(const RowPlan& plan, void* stream) {
  const auto kernel = plan.turned ? &merge_rows<Acc, Element, n, true> : &merge_rows<Acc, Element, n, false>;
  launch("cross_merge_rows", kernel, plan.blocks, kRowThreads, plan.shared_bytes, stream, plan.arguments);
}

template <typename Acc, typename Element>
void merge_of(CrossArguments a, GpuLimits limits, void* stream) {
  if (!along_steps(a.sequences)) {
    invert(a, stream);
    const RowPlan plan = plan_rows(a, sizeof(Element));
    plan.in_vectors ? merge_rows_of<Acc, Element, Vector<Element>::kCount>(plan, stream)
                  : merge_rows_of<Acc, Element, 1>(plan, stream);
  } else if (!a.table) {
    const PlanePlan plan = plan_planes(a, sizeof(Element), sizeof(Acc), limits);
    launch("cross_merge_planes", &merge_planes<Acc, Element>, plan.blocks, plan.threads, plan.shared_bytes, stream,
           plan.arguments);
  } else {
    const TablePlan plan = plan_table(a, sizeof(Acc), a.shared_image ? 1 : a.routes);
    if (plan.plane_blocks > 0) {
      launch("cross_merge_table_planes", &merge_table_planes<Acc, Element>, plan.plane_blocks, kTableThreads,
             plan.plane_bytes, stream, plan.arguments);
    } else {
      TableArguments tiles = plan.arguments;
      invert(tiles, stream);
      launch("cross_merge_tiles", &merge_tiles<Acc, Element>, plan.tile_blocks, kTableThreads, plan.tile_bytes, stream,
             tiles);
    }
  }
}

bool is_empty(const CrossScanParams& p) { return p.batch == 0 || p.routes == 0 || p.length == 0 || p.channels == 0; }

}  // namespace
}  // namespace gpu

GpuProbe cuda_probe(int device) {
  auto [error, message] = gpu::refusal(reinterpret_cast<const void*>(&gpu::invert_table), device);  // the smallest
  const auto [driver, built] = gpu::versions();
  return {std::move(error), std::move(message), driver, built};
}

void cross_scan_cuda(const CrossScanParams& p, int32_t* inverse, GpuLimits limits, int device, void* stream) {
  if (gpu::is_empty(p)) return;
  gpu::use_device(device);
  const gpu::CrossArguments a = gpu::cross_arguments(p, p.image.stride[1] == 0, inverse);
  switch (p.image.dtype) {
    case DType::f64: return gpu::scan_of<uint64_t>(a, limits, stream);
    case DType::f32: return gpu::scan_of<uint32_t>(a, limits, stream);
    case DType::f16:
    case DType::bf16: return gpu::scan_of<uint16_t>(a, limits, stream);
  }
}

void cross_merge_cuda(const CrossScanParams& p, int32_t* inverse, GpuLimits limits, int device, void* stream) {
  if (gpu::is_empty(p)) return;
  gpu::use_device(device);
  const gpu::CrossArguments a = gpu::cross_arguments(p, p.sum_routes, inverse);
  if (!p.sum_routes) {
    switch (p.sequences.dtype) {
      case DType::f64: return gpu::merge_of<uint64_t, uint64_t>(a, limits, stream);
      case DType::f32: return gpu::merge_of<uint32_t, uint32_t>(a, limits, stream);
      case DType::f16:
      case DType::bf16: return gpu::merge_of<uint16_t, uint16_t>(a, limits, stream);
    }
  }
  switch (p.sequences.dtype) {
    case DType::f64: return gpu::merge_of<double, double>(a, limits, stream);
    case DType::f32: return gpu::merge_of<float, float>(a, limits, stream);
    case DType::f16: return gpu::merge_of<float, gpu::Half>(a, limits, stream);
    case DType::bf16: return gpu::merge_of<float, gpu::BFloat16>(a, limits, stream);
  }
}

}  // namespace vmddpm
