// A linear layer for a few rows, y = x weight^T + bias. It takes the time in which the weight is read.
#pragma once
#include <cstdint>

namespace vmddpm {

constexpr int64_t kMostRows = 4;  // with more, arithmetic takes longer than reading

struct LinearParams {
  int64_t rows, inputs, outputs;
  int threads;
  const float *x, *weight, *bias;  // (rows, inputs), (outputs, inputs), (outputs) or null; contiguous
  float* y;                        // (rows, outputs)
};

}  // namespace vmddpm
