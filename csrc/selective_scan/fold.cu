// Sums of partial results: segments to the states that enter them, and partial images and matrices to results.
#include <algorithm>

#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

struct CombineArguments {
  int64_t sequences, routes, segments, channels, states;
  const void* A;
  const void* first;     // (B, K, D, N) or null: the state that enters the first segment, or the last one if `reverse`
  void* segment_state;   // in: each segment's own contribution; out: the state that enters it
  const void* segment_delta;
  bool reverse;
};

// Segment after segment: the state that enters one is e^(A sum delta) times the state that entered the one before, plus
// the contribution of the one before. One thread per state.
template <typename Acc>
VMDDPM_KERNEL(kCombineThreads, 4) combine_segments(VMDDPM_ARGUMENTS(CombineArguments) a) {
  const int64_t index = block() * threads() + thread();
  if (index >= a.sequences * a.channels * a.states) return;
  const int64_t channel = index % a.channels, state = index / a.channels % a.states;
  const int64_t sequence = index / (a.channels * a.states);
  const Acc slope = rate(static_cast<const Acc*>(a.A)[((sequence % a.routes) * a.channels + channel) * a.states + state]);
  const Acc* first = static_cast<const Acc*>(a.first);
  Acc h = first ? first[(sequence * a.channels + channel) * a.states + state] : Acc(0);
  Acc* added = static_cast<Acc*>(a.segment_state) + (sequence * a.segments * a.states + state) * a.channels + channel;
  const Acc* delta = static_cast<const Acc*>(a.segment_delta) + sequence * a.segments * a.channels + channel;
  constexpr int kAtOnce = 8;  // loads in flight: the recurrence itself is short
  for (int64_t done = 0; done < a.segments; done += kAtOnce) {
    Acc more[kAtOnce], deltas[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t j = a.reverse ? a.segments - 1 - done - i : done + i;
      const bool inside = j >= 0 && j < a.segments;
      more[i] = inside ? added[j * a.states * a.channels] : Acc(0);
      deltas[i] = inside ? delta[j * a.channels] : Acc(0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t j = a.reverse ? a.segments - 1 - done - i : done + i;
      if (j < 0 || j >= a.segments) continue;
      added[j * a.states * a.channels] = h;
      h = decay(deltas[i] * slope) * h + more[i];
    }
  }
}

struct FoldArguments {
  static constexpr int kMost = 3;
  int count;
  struct {
    const void* images;  // Acc (parts, count)
    void* out;           // (count)
    int64_t count;
    int32_t parts, first_block;
  } sums[kMost];
};

// out = the sum of the images, in order, rounded once. A thread has kFoldPieces pieces of n elements, kApart apart.
template <typename Acc, typename Out, int n>
VMDDPM_KERNEL(kFoldThreads, 4) fold_images(VMDDPM_ARGUMENTS(FoldArguments) all) {
  constexpr int kApart = kFoldThreads * n;
  int number = static_cast<int>(block()), which = 0;
#pragma unroll
  for (int i = 1; i < FoldArguments::kMost; ++i) which += i < all.count && number >= all.sums[i].first_block;
  const auto& a = all.sums[which];
  const int64_t index = static_cast<int64_t>(number - a.first_block) * (kFoldPieces * kApart) + thread() * n;
  const int64_t beyond = a.count - index;
  const int left = static_cast<int>(beyond < kFoldPieces * kApart ? beyond : kFoldPieces * kApart);
  Acc sum[kFoldPieces][n] = {}, part[n];
  const Acc* from = opaque(static_cast<const Acc*>(a.images) + index);
#pragma unroll 1
  for (int k = 0; k < a.parts; ++k, from += a.count) {
#pragma unroll
    for (int piece = 0; piece < kFoldPieces; ++piece) {
      if (piece * kApart >= left) continue;
      load_row(from + piece * kApart, part);
#pragma unroll
      for (int i = 0; i < n; ++i) sum[piece][i] += part[i];
    }
  }
  Out* to = opaque(static_cast<Out*>(a.out) + index);
#pragma unroll
  for (int piece = 0; piece < kFoldPieces; ++piece) {
    if (piece * kApart >= left) continue;
    Out rounded[n];
#pragma unroll
    for (int i = 0; i < n; ++i) narrow(sum[piece][i], rounded[i]);
    store_row(to + piece * kApart, rounded);
  }
}

template <typename Acc, typename Out>
void launch_fold(FoldArguments a, void* stream) {
  constexpr int n = 16 / sizeof(Acc);
  bool vectors = true;
  for (int i = 0; i < a.count; ++i) {
    vectors = vectors && a.sums[i].count % n == 0 && reinterpret_cast<uintptr_t>(a.sums[i].out) % 16 == 0;
  }
  const auto kernel = vectors ? &fold_images<Acc, Out, n> : &fold_images<Acc, Out, 1>;
  const int64_t of_a_block = kFoldPieces * kFoldThreads * (vectors ? n : 1);
  int64_t blocks = 0;
  for (int i = 0; i < a.count; ++i) {
    a.sums[i].first_block = static_cast<int32_t>(blocks);
    blocks += (a.sums[i].count + of_a_block - 1) / of_a_block;
  }
  launch("fold_images", kernel, blocks, kFoldThreads, 0, stream, a);
}

}  // namespace

void combine(const ScanParams& p, const GpuScanPlan& plan, void* segment_state, const void* segment_delta, const void* first,
             bool reverse, void* stream) {
  const CombineArguments c{p.batch * p.routes, p.routes, plan.segments, p.channels, p.states, p.A, first, segment_state,
                           segment_delta, reverse};
  const int64_t blocks = (c.sequences * c.channels * c.states + kCombineThreads - 1) / kCombineThreads;
  if (p.wide) {
    launch("combine_segments", &combine_segments<double>, blocks, kCombineThreads, 0, stream, c);
  } else {
    launch("combine_segments", &combine_segments<float>, blocks, kCombineThreads, 0, stream, c);
  }
}

void fold(std::vector<Sum> sums, void* stream) {
  while (!sums.empty()) {
    const DType dtype = sums.front().dtype;
    FoldArguments a{};
    const auto taken = [&](const Sum& sum) {
      if (sum.dtype != dtype || a.count == FoldArguments::kMost) return false;
      a.sums[a.count++] = {sum.images, sum.out, sum.count, static_cast<int32_t>(sum.parts), 0};
      return true;
    };
    sums.erase(std::remove_if(sums.begin(), sums.end(), taken), sums.end());
    switch (dtype) {
      case DType::f64: launch_fold<double, double>(a, stream); break;
      case DType::f32: launch_fold<float, float>(a, stream); break;
      case DType::f16: launch_fold<float, Half>(a, stream); break;
      case DType::bf16: launch_fold<float, BFloat16>(a, stream); break;
    }
  }
}

}  // namespace gpu
}  // namespace vmddpm
