// Cross scan and cross merge: copies of an image along K routes, and the adjoint. Views are (B, K, L, C); images are in
// pixel order, sequences in route order.
#pragma once
#include "../common/limits.h"
#include "../common/tensor.h"

namespace vmddpm {

struct CrossScanParams {
  int64_t batch, routes, length, channels;
  const int32_t* table;  // (K, L), rows are permutations
  View image;            // route stride 0 if the routes share one image
  View sequences;
  bool sum_routes;       // merge only: sum the routes to one image
  int threads;
  // With a null table: VMamba's four routes over height x width = length pixels, numbered as in
  // vmddpm_kernels/routes.py.
  int64_t height = 0, width = 0;
  int32_t scans = 0;
};

// sequences[b, k, l] = image[b, k, table[k, l]]. Both have the same type and any layout; values are copied exactly.
void cross_scan_cpu(const CrossScanParams& params);

// image[b, k, table[k, l]] = sequences[b, k, l], or with sum_routes the sum over k, in order. Both have the same type;
// half precision is summed in float and rounded once.
void cross_merge_cpu(const CrossScanParams& params);

// Cross scan and merge on a GPU. `inverse` is a workspace (K, L), needed with a table. Both throw std::runtime_error
// naming the kernel if a launch fails.
void cross_scan_cuda(const CrossScanParams& params, int32_t* inverse, GpuLimits limits, int device, void* stream);
void cross_merge_cuda(const CrossScanParams& params, int32_t* inverse, GpuLimits limits, int device, void* stream);

}  // namespace vmddpm
