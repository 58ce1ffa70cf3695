// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; dispatch.cpp picks one at run time.
//
// A register holds states of one channel, which are contiguous.
#include "../dispatch.h"

#include "../common/integers.h"
#include "../common/runs.h"
#include "../common/silu.h"
#include "../common/workspace.h"

VMDDPM_DECLARE_KERNELS(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {
namespace {

thread_local Workspace workspace;

// Whether rows of N states can be used in place: whole registers of the accumulation's type.
template <typename T>
bool in_place(const View& view, int64_t states) {
  return view.stride[3] == 1 && states % kLanes<T> == 0 && view.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
}

// The row of N states at `offset`, in place or copied to `room`, whose last register may be partly unused.
template <typename T>
T* row_at(const View& view, bool direct, int64_t offset, int64_t states, T* room) {
  if (direct) return static_cast<T*>(view.data) + offset;
  gather(view, offset, view.stride[3], states, room);
  return room;
}

template <typename T>
Vec<T> channels_at(const View& view, int64_t offset, int64_t count) {
  T values[kLanes<T>] = {};
  if (view.data) gather(view, offset, view.stride[3], count, values);
  return load(static_cast<const T*>(values));
}

template <typename T>
void update(const StateUpdateParams& p) {
  constexpr int W = kLanes<T>;
  const int64_t padded = (p.states + W - 1) / W * W, blocks = (p.channels + W - 1) / W;
  const int64_t rows = p.batch * p.heads;
  const T beyond = static_cast<T>(p.states - (padded - W));  // the first unused lane of the last register
  T numbers[W];
  for (int i = 0; i < W; ++i) numbers[i] = static_cast<T>(i);
  const auto live = load(static_cast<const T*>(numbers)) < splat(beyond);
  const bool state_direct = in_place<T>(p.state, p.states), A_direct = in_place<T>(p.A, p.states);
  const bool B_direct = in_place<T>(p.B, p.states), C_direct = in_place<T>(p.C, p.states);
  [[maybe_unused]] const int threads = useful_threads(rows * p.channels * padded, 48 << 10, p.threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < rows * blocks; ++task) {
    T* const room = workspace.reserve<T>(4 * padded);
    for (int64_t i = 0; i < 4 * padded; ++i) room[i] = T(0);
    const int64_t b = task / blocks / p.heads, h = task / blocks % p.heads, first = task % blocks * W;
    const int64_t count = p.channels - first < W ? p.channels - first : W, group = h / (p.heads / p.groups);
    const auto matrix_row = [&](const View& view, bool direct, T* copy) {
      return row_at<T>(view, direct, b * view.stride[0] + group * view.stride[2], p.states, copy);
    };
    const T* const B = matrix_row(p.B, B_direct, room);
    const T* const C = matrix_row(p.C, C_direct, room + padded);
    const auto run = [&](const View& view, int64_t batch) {
      return channels_at<T>(view, batch * view.stride[0] + h * view.stride[2] + first * view.stride[3], count);
    };
    const Vec<T> x = run(p.x, b);
    Vec<T> delta = run(p.delta, b) + run(p.delta_bias, 0);
    if (p.softplus) delta = softplus_lanes<T>(delta);
    const Vec<T> drive = delta * x;
    Vec<T> products[W] = {};
    for (int64_t i = 0; i < count; ++i) {
      const int64_t channel = first + i;
      const int64_t at = b * p.state.stride[0] + h * p.state.stride[1] + channel * p.state.stride[2];
      T* const state = row_at<T>(p.state, state_direct, at, p.states, room + 2 * padded);
      const T* const A =
          row_at<T>(p.A, A_direct, h * p.A.stride[0] + channel * p.A.stride[2], p.states, room + 3 * padded);
      Vec<T> product{};
      for (int64_t n = 0; n < padded; n += W) {
        const Vec<T> decay = growth_lanes(load(A + n) * delta[i]);
        Vec<T> next = decay * load(static_cast<const T*>(state) + n) + load(B + n) * drive[i];
        if (n + W == padded) next = select(live, next, Vec<T>{});
        store(state + n, next);
        product += next * load(C + n);
      }
      products[i] = product;
      if (!state_direct) scatter(static_cast<const T*>(state), p.state, at, p.state.stride[3], p.states);
    }
    T sums[W] = {};
    add_lane_sums<T, W>(products, sums);
    Vec<T> y = load(static_cast<const T*>(sums)) + run(p.D, 0) * x;
    if (p.z.data) y = y * silu_lanes<T>(run(p.z, b));
    T result[W];
    store(result, y);
    scatter(static_cast<const T*>(result), p.y, b * p.y.stride[0] + h * p.y.stride[2] + first * p.y.stride[3],
            p.y.stride[3], count);
  }
}

}  // namespace

void state_update(const StateUpdateParams& p) { return p.wide ? update<double>(p) : update<float>(p); }

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
