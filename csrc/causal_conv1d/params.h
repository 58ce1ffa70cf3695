// The causal depthwise convolution over sequences, forward and backward, and its update by a few steps.
//
//   v_l = bias + sum_k weight_k x_{l-W+1+k},   y_l = v_l, or SiLU(v_l);   steps before the first are `history`.
//
// Axes: batch B, step L, channel D, tap W. `Acc` is float, or double if `wide`.
#pragma once
#include "../common/tensor.h"

namespace vmddpm {

constexpr int64_t kLeastTaps = 2, kMostTaps = 4;

struct ConvParams {
  int64_t batch, length, channels, width;
  bool wide;
  bool silu;
  bool columns;         // steps are contiguous in x and y, otherwise channels
  int threads;
  View x, y;            // (B, 1, L, D) of one type, double if `wide`
  const void* weight;   // Acc (D, W)
  const void* bias;     // Acc (D) or null
  const void* history;  // Acc (B, W - 1, D) or null: zeros
};

struct ConvGradParams {
  ConvParams forward;   // y unused
  View dy, dx;          // as x
  void* dweight;        // Acc (B, D, W), to be summed over the batch
  void* dbias;          // Acc (B, D), to be summed too, or null
  void* dhistory;       // Acc (B, W - 1, D) or null
};

// x, y and the state have any types and strides.
struct ConvUpdateParams {
  ConvParams conv;      // history and threads unused
  int64_t state_length;
  View state;           // (B, 1, S, D), S >= W - 1: the latest S steps, updated
};

}  // namespace vmddpm
