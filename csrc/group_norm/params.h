// Group normalisation, an affine map of each channel, and SiLU, forward and backward.
//
//   x^ = (x - mean) rstd over the pixels of an image and the channels of a group,   v = x^ weight + bias,   y = SiLU(v)
//
// Axes: image B, pixel L, channel C, group G of C / G contiguous channels. `Acc` is float, or double if x is.
#pragma once
#include "../common/tensor.h"

namespace vmddpm {

struct GroupNormParams {
  int64_t batch, length, channels, groups;
  double eps;
  int threads;
  DType dtype;            // type of x, y and their gradients, all contiguous (B, L, C)
  const void* x;
  void* y;
  const void* weight;     // Acc (C), or (B, C) if weight_stride is C; null is 1
  const void* bias;       // Acc (C), or (B, C) if bias_stride is C; null is 0
  int64_t weight_stride, bias_stride;
  void* mean;             // Acc (B, G)
  void* rstd;             // Acc (B, G)
};

struct GroupNormGradParams {
  GroupNormParams forward;  // y unused
  const void* dy;
  void* dx;
  void* dweight;            // Acc (B, C), to be summed over the batch if weight is (C)
  void* dbias;              // Acc (B, C), to be summed over the batch if bias is (C)
};

}  // namespace vmddpm
