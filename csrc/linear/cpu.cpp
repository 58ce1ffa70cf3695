// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; dispatch.cpp picks one at run time.
//
// A register of the weight is loaded once and multiplied with each row of x. A result is one sum, whatever the number of
// threads.
#include "../dispatch.h"

#include "../common/integers.h"
#include "../common/lanes.h"

VMDDPM_DECLARE_KERNELS(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {
namespace {

template <int kRows>
void multiply(const LinearParams& p) {
  constexpr int W = kLanes<float>, kChains = 4;  // independent sums, which hide the latency of an addition
  [[maybe_unused]] const int threads = useful_threads(p.inputs * p.outputs, 64 << 10, p.threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t output = 0; output < p.outputs; ++output) {
    const float* const weight = p.weight + output * p.inputs;
    Vec<float> sums[kRows][kChains] = {};
    int64_t i = 0;
    for (; i + kChains * W <= p.inputs; i += kChains * W) {
      for (int chain = 0; chain < kChains; ++chain) {
        const int64_t at = i + chain * W;
        const Vec<float> w = load(weight + at);
        for (int row = 0; row < kRows; ++row) sums[row][chain] += w * load(p.x + row * p.inputs + at);
      }
    }
    for (; i + W <= p.inputs; i += W) {
      const Vec<float> w = load(weight + i);
      for (int row = 0; row < kRows; ++row) sums[row][0] += w * load(p.x + row * p.inputs + i);
    }
    for (int row = 0; row < kRows; ++row) {
      const Vec<float> sum = (sums[row][0] + sums[row][1]) + (sums[row][2] + sums[row][3]);
      float total = p.bias ? p.bias[output] : 0;
      for (int lane = 0; lane < W; ++lane) total += sum[lane];
      for (int64_t j = i; j < p.inputs; ++j) total += weight[j] * p.x[row * p.inputs + j];
      p.y[row * p.outputs + output] = total;
    }
  }
}

}  // namespace

void linear(const LinearParams& p) {
  static_assert(kMostRows == 4);
  switch (p.rows) {
    case 1: return multiply<1>(p);
    case 2: return multiply<2>(p);
    case 3: return multiply<3>(p);
    default: return multiply<4>(p);
  }
}

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
