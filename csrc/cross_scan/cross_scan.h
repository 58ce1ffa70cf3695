// Cross scan and cross merge: an image read along K routes, and its adjoint. Views are (B, K, L, C), in pixel order on
// the image side and in the order of the routes on the other.
#pragma once
#include "../common/tensor.h"

namespace vmddpm {

struct CrossScanParams {
  int64_t batch, routes, length, channels;
  const int32_t* table;  // (K, L), rows are permutations
  View image;            // route stride 0 where the routes share one image
  View sequences;
  bool sum;              // merge only: the routes are summed into one image
  int threads;
};

// sequences[b, k, l] = image[b, k, table[k, l]]; both of one type, any layouts; values are copied, not computed.
void cross_scan_cpu(const CrossScanParams& params);

// image[b, k, table[k, l]] = sequences[b, k, l], or their sum over k in the order of the routes.
// The image is float, or double for double sequences.
void cross_merge_cpu(const CrossScanParams& params);

// The same on a GPU, where the image of a merge has the type of the sequences, rounded once, and `inverse` is a
// workspace of (K, L). Both throw std::runtime_error naming the kernel that could not be launched.
void cross_scan_cuda(const CrossScanParams& params, int device, void* stream);
void cross_merge_cuda(const CrossScanParams& params, int32_t* inverse, int device, void* stream);

}  // namespace vmddpm
