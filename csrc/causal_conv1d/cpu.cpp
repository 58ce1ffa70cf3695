// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; dispatch.cpp picks one at run time.
#include "../dispatch.h"

#include "../common/integers.h"
#include "../common/workspace.h"
#include "cpu_columns.h"
#include "cpu_rows.h"

VMDDPM_DECLARE_KERNELS(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {
namespace {

thread_local Workspace workspace;  // the weights by tap (calling thread), the slopes of a column (each thread)

// (D, W) -> (W, D).
template <typename T>
const T* by_tap(const ConvParams& p) {
  T* const turned = workspace.reserve<T>(p.channels * p.width);
  const T* const weight = static_cast<const T*>(p.weight);
  for (int64_t c = 0; c < p.channels; ++c) {
    for (int64_t k = 0; k < p.width; ++k) turned[k * p.channels + c] = weight[c * p.width + k];
  }
  return turned;
}

template <typename T, typename S, int W>
void forward(const ConvParams& p) {
  [[maybe_unused]] const int threads = useful_threads(p.batch * p.length * p.channels, 48 << 10, p.threads);
  if (p.columns) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < p.batch * p.channels; ++i) forward_column<T, S, W>(p, i / p.channels, i % p.channels);
    return;
  }
  constexpr int64_t kSteps = 16;
  const T* const weight = by_tap<T>(p);
  const int64_t pieces = (p.length + kSteps - 1) / kSteps;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < p.batch * pieces; ++i) {
    const int64_t first = i % pieces * kSteps, end = first + kSteps;
    forward_rows<T, S, W>(p, weight, i / pieces, first, end < p.length ? end : p.length);
  }
}

template <typename T, typename S, int W>
void backward(const ConvGradParams& g) {
  const ConvParams& p = g.forward;
  [[maybe_unused]] const int threads = useful_threads(p.batch * p.length * p.channels, 24 << 10, p.threads);
  if (p.columns) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < p.batch * p.channels; ++i) {
      T* const slopes = workspace.reserve<T>(p.length + W - 1 + kLanes<T>);
      backward_column<T, S, W>(g, i / p.channels, i % p.channels, slopes);
    }
    return;
  }
  const T* const weight = by_tap<T>(p);
  const int64_t blocks = (p.channels + kLanes<T> - 1) / kLanes<T>;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < p.batch * blocks; ++i) {
    backward_rows<T, S, W>(g, weight, i / blocks, i % blocks * kLanes<T>);
  }
}

template <int W>
struct Taps {
  static constexpr int count = W;
};

template <typename Function>
void with_taps(int64_t width, Function f) {
  switch (width) {
    case 2: return f(Taps<2>());
    case 3: return f(Taps<3>());
    default: return f(Taps<4>());
  }
}

// Calls f(a value of the accumulation's type, a value of x's type, the number of taps as a type).
template <typename Function>
void with_types_and_taps(const ConvParams& p, Function f) {
  with_taps(p.width, [&](auto taps) {
    with_types(p.x.dtype, [&](auto acc, auto element) { f(acc, element, taps); });
  });
}

template <typename T, int W>
void update(const ConvUpdateParams& u) {
  const ConvParams& p = u.conv;
  const int64_t kept = u.state_length, steps = kept + p.length;
  const T* const bias = static_cast<const T*>(p.bias);
  T* const window = workspace.reserve<T>(steps * kLanes<T>);  // the state and the new steps
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t c = 0; c < p.channels; c += kLanes<T>) {
      const int64_t count = p.channels - c < kLanes<T> ? p.channels - c : kLanes<T>;
      const auto run = [&](const View& view, int64_t step) {
        return b * view.stride[0] + step * view.stride[2] + c * view.stride[3];
      };
      for (int64_t i = 0; i < steps * kLanes<T>; ++i) window[i] = T(0);
      for (int64_t s = 0; s < kept; ++s) {
        gather(u.state, run(u.state, s), u.state.stride[3], count, window + s * kLanes<T>);
      }
      for (int64_t l = 0; l < p.length; ++l) {
        gather(p.x, run(p.x, l), p.x.stride[3], count, window + (kept + l) * kLanes<T>);
      }
      T weight[W][kLanes<T>] = {}, offset[kLanes<T>] = {};
      for (int64_t i = 0; i < count; ++i) {
        for (int k = 0; k < W; ++k) weight[k][i] = static_cast<const T*>(p.weight)[(c + i) * W + k];
        if (bias) offset[i] = bias[c + i];
      }
      for (int64_t l = 0; l < p.length; ++l) {
        Vec<T> v = load(static_cast<const T*>(offset));
        VMDDPM_UNROLL
        for (int k = 0; k < W; ++k) {
          const T* const tap = window + (kept + l - (W - 1) + k) * kLanes<T>;
          v += load(static_cast<const T*>(weight[k])) * load(tap);
        }
        T result[kLanes<T>];
        store(result, p.silu ? silu_lanes<T>(v) : v);
        scatter(static_cast<const T*>(result), p.y, run(p.y, l), p.y.stride[3], count);
      }
      for (int64_t s = 0; s < kept; ++s) {
        const T* const step = window + (p.length + s) * kLanes<T>;
        scatter(step, u.state, run(u.state, s), u.state.stride[3], count);
      }
    }
  }
}

}  // namespace

void conv_forward(const ConvParams& p) {
  with_types_and_taps(p, [&](auto acc, auto element, auto taps) {
    forward<decltype(acc), decltype(element), decltype(taps)::count>(p);
  });
}

void conv_backward(const ConvGradParams& g) {
  with_types_and_taps(g.forward, [&](auto acc, auto element, auto taps) {
    backward<decltype(acc), decltype(element), decltype(taps)::count>(g);
  });
}

void conv_update(const ConvUpdateParams& u) {
  with_taps(u.conv.width, [&](auto taps) {
    constexpr int W = decltype(taps)::count;
    u.conv.wide ? update<double, W>(u) : update<float, W>(u);
  });
}

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
