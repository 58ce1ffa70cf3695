// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; dispatch.cpp picks one at run time.
//
// A register holds channels of a pixel. Forward and backward each read an image twice, for its sums and for its
// results, and write nothing else of its size. Registers sum a few rows; doubles sum those over the image.
#include "../dispatch.h"

#include <cmath>

#include "../common/integers.h"
#include "../common/lanes.h"
#include "../common/silu.h"
#include "../common/workspace.h"

VMDDPM_DECLARE_KERNELS(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {
namespace {

thread_local Workspace workspace;

constexpr int64_t kRows = 16;

// Calls f(first channel, channels) for each register of a row; the last may be partly filled.
template <typename T, typename Function>
void for_registers(int64_t channels, Function f) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) f(c, channels - c < kLanes<T> ? channels - c : kLanes<T>);
}

template <typename T, typename Source>
VMDDPM_INLINE Vec<T> load_some(const Source* from, int64_t count) {
  if (count == kLanes<T>) return load_lanes<T>(from);
  Vec<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = static_cast<T>(widen(from[i]));
  return v;
}

template <typename T, typename Target>
VMDDPM_INLINE void store_some(Target* to, Vec<T> v, int64_t count) {
  if (count == kLanes<T>) return store_lanes<T>(to, v);
  for (int64_t i = 0; i < count; ++i) narrow(v[i], to[i]);
}

// a[c], b[c] = the sums over an image's rows of the two values that term(row, c, count, first, second) adds to `first`
// and `second`.
template <typename T, typename Term>
void add_rows(int64_t length, int64_t channels, Term term, double* a, double* b) {
  for (int64_t c = 0; c < channels; ++c) a[c] = b[c] = 0;
  for (int64_t row = 0; row < length; row += kRows) {
    const int64_t end = row + kRows < length ? row + kRows : length;
    for_registers<T>(channels, [&](int64_t c, int64_t count) {
      Vec<T> first{}, second{};
      for (int64_t i = row; i < end; ++i) term(i * channels, c, count, first, second);
      T sums[2][kLanes<T>];
      store(sums[0], first);
      store(sums[1], second);
      for (int64_t i = 0; i < count; ++i) {
        a[c + i] += static_cast<double>(sums[0][i]);
        b[c + i] += static_cast<double>(sums[1][i]);
      }
    });
  }
}

// The affine map of one image, by channel: v = (x - mean) scale + bias.
template <typename T>
struct Affine {
  const T *mean, *scale, *bias;

  VMDDPM_INLINE Vec<T> centred(Vec<T> x, int64_t c, int64_t count) const { return x - load_some<T>(mean + c, count); }
  VMDDPM_INLINE Vec<T> of(Vec<T> centred, int64_t c, int64_t count) const {
    return centred * load_some<T>(scale + c, count) + load_some<T>(bias + c, count);
  }
};

template <typename T>
T value_or(const void* values, int64_t at, T otherwise) {
  return values ? static_cast<const T*>(values)[at] : otherwise;
}

template <typename T>
Affine<T> affine_of(const GroupNormParams& p, int64_t image, T* room) {
  const int64_t C = p.channels, each = C / p.groups;
  for (int64_t c = 0; c < C; ++c) {
    const int64_t group = image * p.groups + c / each;
    room[c] = static_cast<const T*>(p.mean)[group];
    room[C + c] = value_or<T>(p.weight, image * p.weight_stride + c, 1) * static_cast<const T*>(p.rstd)[group];
    room[2 * C + c] = value_or<T>(p.bias, image * p.bias_stride + c, 0);
  }
  return {room, room + C, room + 2 * C};
}

// Stores the mean and reciprocal standard deviation of each group. Sums differences from the first row, so that a mean
// far from zero costs no digits.
template <typename T, typename S>
void find_moments(const GroupNormParams& p, int64_t image, const S* x, double* sums) {
  const int64_t C = p.channels, each = C / p.groups;
  double* const squares = sums + C;
  add_rows<T>(p.length, C, [&](int64_t row, int64_t c, int64_t count, Vec<T>& sum, Vec<T>& square) {
    const Vec<T> distance = load_some<T>(x + row + c, count) - load_some<T>(x + c, count);
    sum += distance;
    square += distance * distance;
  }, sums, squares);
  const double length = static_cast<double>(p.length), pixels = length * static_cast<double>(each);
  for (int64_t group = 0; group < p.groups; ++group) {
    double mean = 0, deviation = 0;
    for (int64_t c = group * each; c < (group + 1) * each; ++c) {
      sums[c] /= length;
      squares[c] -= length * sums[c] * sums[c];  // about the channel's own mean
      sums[c] += static_cast<double>(widen(x[c]));
      mean += sums[c] / static_cast<double>(each);
    }
    for (int64_t c = group * each; c < (group + 1) * each; ++c) {
      deviation += squares[c] + length * (sums[c] - mean) * (sums[c] - mean);
    }
    const double variance = deviation > 0 || deviation != deviation ? deviation / pixels : 0;
    static_cast<T*>(p.mean)[image * p.groups + group] = static_cast<T>(mean);
    static_cast<T*>(p.rstd)[image * p.groups + group] = static_cast<T>(1 / std::sqrt(variance + p.eps));
  }
}

template <typename T, typename S>
void forward(const GroupNormParams& p) {
  [[maybe_unused]] const int threads = useful_threads(p.batch * p.length * p.channels, 64 << 10, p.threads);
  const int64_t C = p.channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t image = 0; image < p.batch; ++image) {
    double* const sums = workspace.reserve<double>(3 * C);
    const S* const x = static_cast<const S*>(p.x) + image * p.length * C;
    S* const y = static_cast<S*>(p.y) + image * p.length * C;
    find_moments<T>(p, image, x, sums);
    const Affine<T> affine = affine_of(p, image, reinterpret_cast<T*>(sums));
    for (int64_t row = 0; row < p.length * C; row += C) {
      for_registers<T>(C, [&](int64_t c, int64_t count) {
        const Vec<T> centred = affine.centred(load_some<T>(x + row + c, count), c, count);
        store_some<T>(y + row + c, silu_lanes<T>(affine.of(centred, c, count)), count);
      });
    }
  }
}

// With dv = dy SiLU'(v):  dbias = sum dv,  dweight = sum dv x^,  and over a group of n pixels and channels
//   dx = rstd (dv weight - (sum weight dbias + x^ sum weight dweight) / n).
template <typename T, typename S>
void backward(const GroupNormGradParams& g) {
  const GroupNormParams& p = g.forward;
  [[maybe_unused]] const int threads = useful_threads(p.batch * p.length * p.channels, 64 << 10, p.threads);
  const int64_t C = p.channels, each = C / p.groups;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t image = 0; image < p.batch; ++image) {
    double* const sums = workspace.reserve<double>(7 * C);
    double* const products = sums + C;
    T* const room = reinterpret_cast<T*>(sums + 2 * C);
    const int64_t first = image * p.length * C;
    const S *const x = static_cast<const S*>(p.x) + first, *const dy = static_cast<const S*>(g.dy) + first;
    S* const dx = static_cast<S*>(g.dx) + first;
    const Affine<T> affine = affine_of(p, image, room);
    T *const along = room + 3 * C, *const offset = room + 4 * C;  // dx = dv scale + (x - mean) along + offset
    const auto slope = [&](int64_t row, int64_t c, int64_t count, Vec<T> centred) {
      return load_some<T>(dy + row + c, count) * silu_slope_lanes<T>(affine.of(centred, c, count));
    };
    add_rows<T>(p.length, C, [&](int64_t row, int64_t c, int64_t count, Vec<T>& sum, Vec<T>& product) {
      const Vec<T> centred = affine.centred(load_some<T>(x + row + c, count), c, count);
      const Vec<T> dv = slope(row, c, count, centred);
      sum += dv;
      product += dv * centred;
    }, sums, products);
    for (int64_t group = 0; group < p.groups; ++group) {
      const double rstd = static_cast<double>(static_cast<const T*>(p.rstd)[image * p.groups + group]);
      const double n = static_cast<double>(p.length) * static_cast<double>(each);
      double all = 0, all_products = 0;
      for (int64_t c = group * each; c < (group + 1) * each; ++c) {
        const double weight = static_cast<double>(value_or<T>(p.weight, image * p.weight_stride + c, 1));
        products[c] *= rstd;
        all += weight * sums[c];
        all_products += weight * products[c];
      }
      for (int64_t c = group * each; c < (group + 1) * each; ++c) {
        along[c] = static_cast<T>(-rstd * rstd * all_products / n);
        offset[c] = static_cast<T>(-rstd * all / n);
      }
    }
    for (int64_t c = 0; c < C; ++c) {
      static_cast<T*>(g.dbias)[image * C + c] = static_cast<T>(sums[c]);
      static_cast<T*>(g.dweight)[image * C + c] = static_cast<T>(products[c]);
    }
    for (int64_t row = 0; row < p.length * C; row += C) {
      for_registers<T>(C, [&](int64_t c, int64_t count) {
        const Vec<T> centred = affine.centred(load_some<T>(x + row + c, count), c, count);
        const Vec<T> dv = slope(row, c, count, centred);
        store_some<T>(dx + row + c,
                      dv * load_some<T>(affine.scale + c, count) + centred * load_some<T>(along + c, count) +
                          load_some<T>(offset + c, count),
                      count);
      });
    }
  }
}

}  // namespace

void group_norm_forward(const GroupNormParams& p) {
  with_types(p.dtype, [&](auto acc, auto element) { forward<decltype(acc), decltype(element)>(p); });
}

void group_norm_backward(const GroupNormGradParams& g) {
  with_types(g.forward.dtype, [&](auto acc, auto element) { backward<decltype(acc), decltype(element)>(g); });
}

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
