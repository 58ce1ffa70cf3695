// Cross scan and cross merge: an image read along K routes, and its adjoint. Views are (B, K, L, C), in pixel order on
// the image side and in the order of the routes on the other.
#pragma once
#include "../common/limits.h"
#include "../common/tensor.h"

namespace vmddpm {

struct CrossScanParams {
  int64_t batch, routes, length, channels;
  const int32_t* table;  // (K, L), rows are permutations
  View image;            // route stride 0 where the routes share one image
  View sequences;
  bool sum_routes;       // merge only: the routes are summed into one image
  int threads;
  // Without a table (null): the four routes of VMamba over height x width = length pixels, numbered as
  // vmddpm_kernels/routes.py numbers them.
  int64_t height = 0, width = 0;
  int32_t scans = 0;
};

// sequences[b, k, l] = image[b, k, table[k, l]]; both of one type, any layouts; values are copied, not computed.
void cross_scan_cpu(const CrossScanParams& params);

// image[b, k, table[k, l]] = sequences[b, k, l], an exact copy, or their sum over k in the order of the routes. Both
// have one type; half precision is summed in float and rounded once.
void cross_merge_cpu(const CrossScanParams& params);

// The same on a GPU; `inverse` is a workspace of (K, L) beside a table. Both throw std::runtime_error naming the kernel
// that could not be launched.
void cross_scan_cuda(const CrossScanParams& params, int32_t* inverse, GpuLimits limits, int device, void* stream);
void cross_merge_cuda(const CrossScanParams& params, int32_t* inverse, GpuLimits limits, int device, void* stream);

}  // namespace vmddpm
