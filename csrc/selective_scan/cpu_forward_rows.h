// The forward scan of a single state.
#pragma once
#include "cpu_rows.h"

namespace {

// Parameters and states of the recurrence, one register per block.
template <typename T>
struct ForwardChannels {
  const Vec<T>*A, *bias, *D;
  Vec<T>* h;
  int64_t blocks;
};

// Pointers to the channels of one step. `sum`: y of the earlier routes, to be added.
template <typename T, typename Source, typename Target>
struct ForwardRow {
  const Source *x, *delta;
  const T* sum;
  Target* y;
};

template <typename T, typename Source, typename Target>
struct ForwardRows {
  PixelRows<const Source> x, delta;
  PixelRows<const T> sum;
  PixelRows<Target> y;
  ForwardRow<T, Source, Target> at(int64_t pixel) const {
    return {x.at(pixel), delta.at(pixel), sum.at(pixel), y.at(pixel)};
  }
};

// y is prefetched too: without that, a sequence takes twice as long if y is in main memory.
template <typename T, bool kSoftplus, bool kAdd, bool kFirst, typename Source, typename Target>
void scan_row(ForwardRow<T, Source, Target> row, ForwardRow<T, Source, Target> later, ForwardChannels<T> of, T B, T C) {
  for (int64_t block = 0; block < of.blocks; ++block) {
    const int64_t column = block * kLanes<T>;
    prefetch(later.x + column);
    prefetch(later.delta + column);
    prefetch(later.y + column);
    const Vec<T> x = load_lanes<T>(row.x + column), raw = load_lanes<T>(row.delta + column) + of.bias[block];
    const Vec<T> delta = kSoftplus ? softplus_lanes<T>(raw) : raw;
    const Vec<T> h = decayed<T, Rule::decaying, kFirst>(delta * of.A[block], of.h[block]) + delta * x * B;
    of.h[block] = h;
    const Vec<T> y = of.D[block] * x + h * C;
    store_lanes<T>(row.y + column, kAdd ? load_lanes<T>(row.sum + column) + y : y);
  }
}

// Scans one chunk of a route of `length` steps; B and C are the chunk's. `first`: the state before it is zero.
template <typename T, bool kSoftplus, bool kAdd, typename Source, typename Target>
VMDDPM_NOINLINE void scan_rows(ForwardRows<T, Source, Target> rows, Steps chunk, int64_t length,
                               bool first, ForwardChannels<T> of, const T* B, const T* C) {
  const int64_t distance = prefetch_distance(of.blocks), last = length - 1 - chunk.first;
  const auto later = [&](int64_t i) { return rows.at(chunk.pixel(minimum(i + distance, last))); };
  int64_t i = 0;
  if (first) {
    scan_row<T, kSoftplus, kAdd, true>(rows.at(chunk.pixel(0)), later(0), of, B[0], C[0]);
    i = 1;
  }
  for (; i < chunk.count; ++i) {
    scan_row<T, kSoftplus, kAdd, false>(rows.at(chunk.pixel(i)), later(i), of, B[i], C[i]);
  }
}

// Blocks walked together over a chunk if threads share the rows of y. Walking whole rows, two threads took twice the
// time of one in some runs and two thirds of it in others, perhaps because the hardware prefetches lines that the other
// thread is about to write.
constexpr int64_t kBlocksAtOnceBesideOthers = 2;

// Walks a chunk by rows, if all tensors have rows, for the task's blocks that use all lanes. Returns the first
// remaining block.
template <typename T, typename Buffers>
int64_t scan_by_rows(const ScanParams& p, const ScanPlan& plan, const Task& task, int64_t k, const Steps& chunk,
                     const Buffers& w) {
  const View& y = result_of(p, p.y, p.narrow_y, k);
  bool rows = p.states == 1 && p.rank == 0 && p.delta.dtype == p.x.dtype;
  for (const View* view : {&p.x, &p.delta, &p.y, &y}) rows = rows && has_rows(*view);
  const int64_t begin = task.block_begin, end = whole_blocks_end(p, plan, task.block_end);
  if (!rows || begin >= end) return begin;
  const bool first = begins_with_zero(p, chunk);
  const bool alone = begin == 0 && task.block_end == plan.blocks;
  const int64_t at_once = alone ? end - begin : kBlocksAtOnceBesideOthers;
  const bool taken = with_row_types<T>(p.x.dtype, y.dtype, [&](auto source, auto target) {
    using Source = decltype(source);
    using Target = decltype(target);
    const auto scan = [&](auto softplus, auto add) {
      for (int64_t block = begin; block < end; block += at_once) {
        const auto of_view = [&](auto* data, const View& view) {
          return pixel_rows(data, view, task.batch, k, block * plan.lanes);
        };
        const ForwardRows<T, Source, Target> at{of_view(static_cast<const Source*>(p.x.data), p.x),
                                                of_view(static_cast<const Source*>(p.delta.data), p.delta),
                                                of_view(static_cast<const T*>(p.y.data), p.y),
                                                of_view(static_cast<Target*>(y.data), y)};
        const int64_t i = block - begin;
        const ForwardChannels<T> of{w.A + i, w.bias + i, w.D + i, w.h + i, minimum(at_once, end - block)};
        scan_rows<T, softplus.value, add.value>(at, chunk, p.length, first, of, w.B, w.C);
      }
    };
    const auto with_softplus = [&](auto add) {
      p.softplus ? scan(std::true_type(), add) : scan(std::false_type(), add);
    };
    p.sum_routes && k > 0 ? with_softplus(std::true_type()) : with_softplus(std::false_type());
  });
  return taken ? end : begin;
}

}  // namespace
