// What is added up when the scans are done: segments to the states that enter them, and partial images and matrices.
#include "cuda_launch.h"

namespace vmddpm {
namespace gpu {
namespace {

struct CombineArguments {
  int64_t sequences, routes, segments, channels, states;
  const void* A;
  const void* first;     // (B, K, D, N) or null: what enters the first segment, or the last one when `reverse`
  void* segment_state;   // what each segment adds -> what enters it
  const void* segment_delta;
  bool reverse;
};

// Segment after segment: the state that enters one is e^(A sum delta) times what entered the one before, plus what that
// one added. One thread a state.
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
  const void* images;  // Acc (parts, count)
  void* out;           // (count)
  int64_t count;
  int32_t parts;
};

// out = the sum of the images, in their order, rounded once. A thread has two pieces of n elements, kFoldThreads pieces apart.
template <typename Acc, typename Out, int n>
VMDDPM_KERNEL(kFoldThreads, 4) fold_images(VMDDPM_ARGUMENTS(FoldArguments) a) {
  constexpr int kApart = kFoldThreads * n;
  const int64_t index = block() * (kFoldPieces * kApart) + thread() * n;
  if (index >= a.count) return;
  const bool both = index + kApart < a.count;
  Acc sum[kFoldPieces][n] = {}, part[n];
  const Acc* from = opaque(static_cast<const Acc*>(a.images) + index);
#pragma unroll 1
  for (int k = 0; k < a.parts; ++k, from += a.count) {
#pragma unroll
    for (int piece = 0; piece < kFoldPieces; ++piece) {
      if (piece > 0 && !both) continue;
      load_row(from + piece * kApart, part);
#pragma unroll
      for (int i = 0; i < n; ++i) sum[piece][i] += part[i];
    }
  }
  Out* to = opaque(static_cast<Out*>(a.out) + index);
#pragma unroll
  for (int piece = 0; piece < kFoldPieces; ++piece) {
    if (piece > 0 && !both) continue;
    Out rounded[n];
#pragma unroll
    for (int i = 0; i < n; ++i) narrow(sum[piece][i], rounded[i]);
    store_row(to + piece * kApart, rounded);
  }
}

template <typename Acc, typename Out>
void launch_fold(const FoldArguments& a, void* stream) {
  constexpr int n = 16 / sizeof(Acc);
  const bool vectors = a.count % n == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  const auto kernel = vectors ? &fold_images<Acc, Out, n> : &fold_images<Acc, Out, 1>;
  const int64_t of_a_block = kFoldPieces * kFoldThreads * (vectors ? n : 1);
  launch("fold_images", kernel, (a.count + of_a_block - 1) / of_a_block, kFoldThreads, 0, stream, a);
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

void fold(const void* images, int64_t parts, int64_t count, void* out, DType out_dtype, void* stream) {
  const FoldArguments a{images, out, count, static_cast<int32_t>(parts)};
  switch (out_dtype) {
    case DType::f64: return launch_fold<double, double>(a, stream);
    case DType::f32: return launch_fold<float, float>(a, stream);
    case DType::f16: return launch_fold<float, Half>(a, stream);
    case DType::bf16: return launch_fold<float, BFloat16>(a, stream);
  }
}

}  // namespace gpu
}  // namespace vmddpm
