// The forward scan, and the walk that makes long sequences parallel: it finds each segment's contribution to the state.
//
// A lane walks S states of its channel through a segment. If the states of a channel are divided among the warps of a
// block (kSlices > 1), each warp decodes delta and the drive delta x of one group of a tile's steps for all of them,
// and sums y for that group.
#include "batch_part.h"
#include "cuda_launch.h"
#include "cuda_stream.h"

namespace vmddpm {
namespace gpu {
namespace {

struct ForwardArguments {
  int32_t routes, channels, states;
  int32_t first_state;              // of this launch
  int32_t length, segment;          // steps
  int32_t groups, segments, chunks;
  int32_t tiles;                    // warps of channels in a block
  int32_t images;                   // images of y; route k goes to image k % images
  bool softplus, start_by_segment;
  Put put;                          // how y is stored
  Stream x, delta, B, C, y;
  const void *A, *D, *delta_bias;
  const int32_t* table;
  const void* start;                // states to start from: (B, K, D, N), or (B, K, segments, N, D); null is zero
  void *segment_state, *segment_delta, *last_state, *checkpoints;
};

// Steps of a tile of B and C: more for a single state.
template <int S, int kSlices>
constexpr int kTileSteps = S * kSlices == 1 ? 32 : 16;

template <typename Acc, int S, int kSlices>
struct Shared {
  static constexpr int kBuffers = kSlices == 1 ? 2 : 1;  // of B and C
  static constexpr int kTile = kTileSteps<S, kSlices> * S * kSlices;
  static constexpr int kPiece = 4 * int(Pixels<kTileSteps<S, kSlices>>::kCount), kMatrices = kPiece + int(sizeof(Piece));
  static constexpr int kDecoded = kMatrices + kBuffers * 2 * kTile * int(sizeof(Acc));
  // With several slices, for each warp of channels: delta and drive of a tile, and each slice's part of y.
  static constexpr int kLanes = kTileSteps<S, kSlices> * kWarp;
  static constexpr int kEach = kSlices == 1 ? 0 : (2 + kSlices) * kLanes * int(sizeof(Acc));
  static constexpr int bytes(int tiles) { return kDecoded + tiles * kEach; }
};

// Blocks per multiprocessor that the registers must allow, and the most threads per block.
template <typename E, int S, int kSlices, bool kZoh>
constexpr int kBlocks = sizeof(E) == 8 ? 2 : S == 16 ? (kZoh ? 2 : 4) : kSlices > 1 ? (kZoh ? 2 : 3) : S == 1 && !kZoh ? 8 : 6;
template <int kSlices>
constexpr int kThreads = kSlices > 1 ? 256 : 128;
// The fewest threads that a plan gives a block: they set how much of B and C a thread loads.
template <int S, int kSlices>
constexpr int kLeastThreads = kSlices > 1 ? 128 : S == 16 ? 96 : 64;

// One step of S states of one channel (Eq. 5-6): h = e^v h + phi(v) drive B with v = delta A. Returns <C, h>.
template <typename Acc, int S, bool kZoh, bool kOutput>
VMDDPM_DEVICE Acc step(Acc delta, Acc drive, const Acc* B, const Acc* C, const Acc (&rates)[S], Acc (&h)[S]) {
  Acc b[S], c[S];
  load_row(B, b);
  if constexpr (kOutput) load_row(C, c);
  constexpr int kSums = S < 4 ? S : 4;  // short chains of additions
  Acc y[kSums] = {};
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const Acc v = delta * rates[s], e = decay(v);
    Acc input = drive * b[s];
    if constexpr (kZoh) {
      Acc phi, dphi;
      zoh_weight(v * kRateUnit<Acc>, e, phi, dphi);
      input *= phi;
    }
    h[s] = e * h[s] + input;
    if constexpr (kOutput) y[s % kSums] += h[s] * c[s];
  }
  if constexpr (kSums == 4) return (y[0] + y[1]) + (y[2] + y[3]);
  return y[0];
}

// Decodes delta and x of a group of steps, of which `count` exist; the rest are zero and leave the state as it is.
template <typename Raw, typename Acc>
VMDDPM_DEVICE void decode(const Raw& raw_x, const Raw& raw_delta, Acc bias, bool softplus_on, int count, Acc (&x)[kGroup],
                          Acc (&delta)[kGroup]) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    x[i] = raw_x.value(i);
    delta[i] = raw_delta.value(i) + bias;
  }
  if (softplus_on) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) delta[i] = softplus(delta[i]);
  }
  if (count >= kGroup) return;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (i >= count) x[i] = delta[i] = Acc(0);
  }
}

// A thread's channel and states. Lanes beyond the last channel walk it too but store nothing; warps beyond do not walk.
template <int S, int kSlices>
struct Place {
  int warp, lane, slice;  // warp of channels
  bool walks, valid;
  int channel;
  int first, count;       // its first state, and how many exist: S, fewer, or none

  VMDDPM_DEVICE Place(const ForwardArguments& a, const Piece& piece) {
    const uint32_t number = thread();
    lane = number % kWarp;
    slice = number / kWarp % kSlices;
    warp = number / kWarp / kSlices;
    const int column = (piece.group * a.tiles + warp) * kWarp;
    walks = column < a.channels;
    valid = column + lane < a.channels;
    channel = valid ? column + lane : a.channels - 1;
    first = a.first_state + slice * S;
    count = a.states - first < S ? a.states - first : S;
  }
};

// Stores the state after the last step, or a segment's contribution. Recomputes the address to save registers.
template <int S, int kSlices, bool kOutput, typename Acc>
VMDDPM_DEVICE void end_of_walk(const ForwardArguments& a, const Piece& piece, const Acc (&h)[S], Acc delta_sum) {
  const Place<S, kSlices> me(a, piece);
  if (!me.valid) return;
  const int64_t sequence = static_cast<int64_t>(piece.batch) * a.routes + piece.route;
  if constexpr (kOutput) {
    if (piece.segment + 1 < a.segments) return;
    const int64_t place = (sequence * a.channels + me.channel) * a.states + me.first;
    store_states(h, me.count, 1, static_cast<Acc*>(a.last_state) + place);
  } else {
    const int64_t segment = sequence * a.segments + piece.segment, place = (segment * a.states + me.first) * a.channels;
    store_states(h, me.count, a.channels, static_cast<Acc*>(a.segment_state) + place + me.channel);
    if (me.first == 0) static_cast<Acc*>(a.segment_delta)[segment * a.channels + me.channel] = delta_sum;
  }
}

template <typename E, int S, int kSlices, bool kZoh, bool kVectors, bool kOutput>
VMDDPM_KERNEL(kThreads<kSlices>, (kBlocks<E, S, kSlices, kZoh>)) scan_forward(VMDDPM_ARGUMENTS(ForwardArguments) a) {
  using Acc = Accumulate<E>;
  using Layout = Shared<Acc, S, kSlices>;
  constexpr int kStates = S * kSlices, kTile = Layout::kTile, kSteps = kTileSteps<S, kSlices>;
  static_assert(kSlices == 1 || kSlices * kGroup == kSteps, "a slice brings one group of a tile");
  char* shared = gpu::shared();
  const Piece piece = piece_of(static_cast<uint32_t>(block()), a.groups, a.segments, a.routes);
  Piece* kept_piece = reinterpret_cast<Piece*>(shared + Layout::kPiece);
  if (thread() == 0) *kept_piece = piece;
  const auto [warp, lane, slice, walks, valid, channel, first, count] = Place<S, kSlices>(a, piece);
  const int first_step = piece.segment * a.segment;
  const int steps = a.length - first_step < a.segment ? a.length - first_step : a.segment;
  const int end = walks ? steps : 0;  // of this warp's walk
  const int64_t sequence = static_cast<int64_t>(piece.batch) * a.routes + piece.route;
  const int64_t parameter = static_cast<int64_t>(piece.route) * a.channels + channel;

  Acc rates[S], h[S];
  load_states(static_cast<const Acc*>(a.A) + parameter * a.states + first, 1, count, rates);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    rates[s] = rate(rates[s]);
    h[s] = Acc(0);
  }
  if (kOutput && a.start) {
    const Acc* start = static_cast<const Acc*>(a.start);
    if (a.start_by_segment) {
      start += ((sequence * a.segments + piece.segment) * a.states + first) * a.channels + channel;
      load_states(start, a.channels, count, h);
    } else {
      load_states(start + (sequence * a.channels + channel) * a.states + first, 1, count, h);
    }
  }
  const Acc bias = a.delta_bias ? static_cast<const Acc*>(a.delta_bias)[parameter] : Acc(0);
  const Acc skip = kOutput && a.D && a.first_state == 0 ? static_cast<const Acc*>(a.D)[parameter] : Acc(0);
  const char *x_lane = lane_of(a.x, piece.batch, piece.route, channel);
  const char *delta_lane = lane_of(a.delta, piece.batch, piece.route, channel);
  char* y_lane = kOutput ? lane_of(a.y, piece.batch, piece.route % a.images, channel) : nullptr;

  Acc* checkpoint = nullptr;
  if (kOutput && a.checkpoints && valid) {
    const int64_t chunk = sequence * a.chunks + first_step / kGpuChunk;
    checkpoint = opaque(static_cast<Acc*>(a.checkpoints) + (chunk * a.states + first) * a.channels + channel);
  }

  Acc* matrix_tiles = reinterpret_cast<Acc*>(shared + Layout::kMatrices);
  Acc* own_tiles = reinterpret_cast<Acc*>(shared + Layout::kDecoded + warp * Layout::kEach) + lane;
  const int32_t* table = a.table ? a.table + static_cast<int64_t>(piece.route) * a.length + first_step : nullptr;
  Pixels<kSteps> pixels{reinterpret_cast<int32_t*>(shared), table, first_step, steps};
  using Tile = Matrices<E, kStates, kSteps, kLeastThreads<S, kSlices>, kOutput>;
  Tile matrices(a.B, a.C, piece, a.first_state, a.states - a.first_state);
  Group<E, kVectors> raw_x{}, raw_delta{};
  const auto fetch_group = [&](int at) {
    if (at >= end) return;
    raw_x.fetch(a.x, x_lane, pixels.at(at));
    raw_delta.fetch(a.delta, delta_lane, pixels.at(at));
  };
  Acc delta_sum = Acc(0);
  const int own = slice * kGroup;  // the first step of a tile that this slice decodes

  if (steps > 0) {
    pixels.fetch(0);
    pixels.store(0);
    pixels.fetch(1);
  }
  barrier();
  if (steps > 0) {
    matrices.fetch(a.B, a.C, pixels, 0);
    fetch_group(own);
  }
#pragma unroll 1
  for (int at = 0; at < steps; at += kSteps) {
    const int tile = static_cast<uint32_t>(at) / kSteps, left = end - at, walked = left < kSteps ? left : kSteps;
    Acc* B_tile = matrix_tiles + (tile % Layout::kBuffers) * 2 * kTile;
    Acc* C_tile = B_tile + kTile;
    Acc x[kGroup], delta[kGroup];
    matrices.store(a.B, B_tile, C_tile, steps - at);
    pixels.store(tile + 1);
    if constexpr (kSlices > 1) {
      decode(raw_x, raw_delta, bias, a.softplus, left - own, x, delta);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const Acc decoded[2] = {delta[i], delta[i] * x[i]};
        store_row(own_tiles + 2 * ((own + i) * kWarp) + lane, decoded);
      }
    }
    barrier();
    pixels.fetch(tile + 2);
    if (steps - at > kSteps) matrices.fetch(a.B, a.C, pixels, tile + 1);
    if constexpr (kSlices > 1) fetch_group(at + kSteps + own);
    if (kOutput && checkpoint && static_cast<uint32_t>(at) % kGpuChunk == 0) {
      store_states(h, count, a.channels, checkpoint);
      checkpoint += static_cast<int64_t>(a.states) * a.channels;
    }

    if constexpr (kSlices == 1) {
#pragma unroll 1
      for (int t = 0; t < walked; t += kGroup) {
        decode(raw_x, raw_delta, bias, a.softplus, walked - t, x, delta);
        fetch_group(at + t + kGroup);
        Acc y[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const Acc *B = B_tile + (t + i) * kStates, *C = C_tile + (t + i) * kStates;
          y[i] = step<Acc, S, kZoh, kOutput>(delta[i], delta[i] * x[i], B, C, rates, h) + skip * x[i];
          if constexpr (!kOutput) delta_sum += delta[i];
        }
        if constexpr (kOutput) store_group<E, kVectors>(a.y, y_lane, pixels.at(at + t), valid ? walked - t : 0, a.put, y);
      }
    } else {
      Acc* part = own_tiles + (2 + slice) * Layout::kLanes;
#pragma unroll 1
      for (int t = 0; t < walked; t += kGroup) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          Acc decoded[2];
          load_row(own_tiles + 2 * ((t + i) * kWarp) + lane, decoded);
          const Acc *B = B_tile + (t + i) * kStates + slice * S, *C = C_tile + (t + i) * kStates + slice * S;
          const Acc y = step<Acc, S, kZoh, kOutput>(decoded[0], decoded[1], B, C, rates, h);
          if constexpr (kOutput) part[(t + i) * kWarp] = y;
          if constexpr (!kOutput) delta_sum += decoded[0];
        }
      }
      barrier();
      if constexpr (kOutput) {
        Acc y[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          y[i] = skip * x[i];
#pragma unroll
          for (int g = 0; g < kSlices; ++g) y[i] += own_tiles[((2 + g) * kSteps + own + i) * kWarp];
        }
        store_group<E, kVectors>(a.y, y_lane, pixels.at(at + own), valid ? left - own : 0, a.put, y);
      }
    }
  }

  end_of_walk<S, kSlices, kOutput>(a, *kept_piece, h, delta_sum);
}

template <typename E, int S, int kSlices, bool kOutput>
void launch_walk(const ForwardArguments& a, const GpuScanPlan& plan, const ScanParams& p, void* stream) {
  auto kernel = &scan_forward<E, S, kSlices, false, false, kOutput>;
  if (p.zoh) kernel = &scan_forward<E, S, kSlices, true, false, kOutput>;
  if constexpr (sizeof(E) < 8) {
    if (!p.zoh && !plan.meet && a.x.vectors && a.delta.vectors && a.y.vectors) kernel = &scan_forward<E, S, kSlices, false, true, kOutput>;
  }
  const int64_t blocks = p.batch * p.routes * plan.segments * plan.groups;
  const int64_t bytes = Shared<Accumulate<E>, S, kSlices>::bytes(plan.tiles);
  launch(kOutput ? "scan_forward" : "scan_carry", kernel, blocks, block_threads(plan), bytes, stream, a);
}

template <typename E, bool kOutput>
void launch_passes(ForwardArguments a, const GpuScanPlan& plan, const ScanParams& p, void* stream) {
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    a.first_state = static_cast<int32_t>(pass * plan.states_per_thread * plan.slices);
    a.put = plan.meet || pass > 0 ? Put::add : Put::set;
    if constexpr (sizeof(E) == 8) {
      launch_walk<E, 1, 4, kOutput>(a, plan, p, stream);
    } else if (plan.slices > 1) {
      launch_walk<E, 4, 4, kOutput>(a, plan, p, stream);
    } else if (plan.states_per_thread == 1) {
      launch_walk<E, 1, 1, kOutput>(a, plan, p, stream);
    } else if (plan.states_per_thread == 4) {
      launch_walk<E, 4, 1, kOutput>(a, plan, p, stream);
    } else if constexpr (kOutput) {
      launch_walk<E, 16, 1, kOutput>(a, plan, p, stream);
    }
  }
}

template <typename E>
void scan(ForwardArguments a, const ScanParams& p, const GpuScanPlan& plan, void* stream) {
  if (plan.segments > 1) {
    launch_passes<E, false>(a, plan, p, stream);
    combine(p, plan, a.segment_state, a.segment_delta, p.initial_state, false, stream);
    a.start = a.segment_state;
    a.start_by_segment = true;
  }
  launch_passes<E, true>(a, plan, p, stream);
}

ForwardArguments forward_arguments(const ScanParams& p, const GpuScanPlan& plan, const GpuScanWorkspace& work) {
  const auto narrow_size = [](int64_t n, const char* name) {
    // Step counters run a few tiles beyond the last step.
    if (n > INT32_MAX - 256) throw std::invalid_argument(std::string(name) + ": there must be fewer than 2^31 - 256");
    return static_cast<int32_t>(n);
  };
  ForwardArguments a{};
  a.routes = narrow_size(p.routes, "routes");
  a.channels = narrow_size(p.channels, "channels");
  a.states = narrow_size(p.states, "states");
  a.length = narrow_size(p.length, "length");
  a.segment = narrow_size(plan.segment, "length");
  a.groups = narrow_size(plan.groups, "channels");
  a.segments = narrow_size(plan.segments, "length");
  a.chunks = narrow_size(plan.chunks, "length");
  a.tiles = plan.tiles;
  a.images = p.sum_routes && plan.images ? narrow_size(plan.images, "routes") : a.routes;
  a.softplus = p.softplus;
  const int64_t wide[4] = {p.batch, p.routes, p.length, p.channels}, matrix[4] = {p.batch, p.routes, p.length, p.states};
  const bool groups = p.table == nullptr;
  const DType accumulate = p.wide ? DType::f64 : DType::f32;
  a.x = make_stream(p.x, wide, groups, false);
  a.delta = make_stream(p.delta, wide, groups, false);
  a.B = make_stream(p.B, matrix, false, p.B.dtype == accumulate);
  a.C = make_stream(p.C, matrix, false, p.C.dtype == accumulate);
  View y = p.y;
  if (plan.images) {
    y.data = work.images;
    y.dtype = accumulate;
    if (p.sum_routes) y.stride[1] = p.batch * p.length * p.channels;
  }
  a.y = make_stream(y, wide, groups, y.dtype == accumulate);
  a.A = p.A;
  a.D = p.D;
  a.delta_bias = p.delta_bias;
  a.table = p.table;
  a.start = p.initial_state;
  a.segment_state = work.segment_state;
  a.segment_delta = work.segment_delta;
  a.last_state = p.last_state;
  a.checkpoints = p.checkpoints;
  return a;
}

}  // namespace

int forward_shared_bytes(const GpuScanPlan& plan, bool wide) {
  if (wide) return Shared<double, 1, 4>::bytes(plan.tiles);
  if (plan.slices > 1) return Shared<float, 4, 4>::bytes(plan.tiles);
  return Shared<float, 16, 1>::bytes(plan.tiles);  // the most
}

}  // namespace gpu

void cuda_scan_forward(const ScanParams& whole, const GpuScanPlan& plan, const GpuScanWorkspace& work, int device, void* stream) {
  using namespace gpu;
  use_device(device);
  for_parts(whole.batch, plan, [&](int64_t first, int64_t count) {
    const ScanParams p = part_of(whole, plan, first, count);
    const ForwardArguments a = forward_arguments(p, plan, work);
    const int64_t elements = p.batch * p.length * p.channels * (p.sum_routes ? 1 : p.routes);
    if (plan.meet) fold({{nullptr, 0, plan.images * elements, work.images, p.wide ? DType::f64 : DType::f32}}, stream);
    switch (p.x.dtype) {
      case DType::f64: scan<double>(a, p, plan, stream); break;
      case DType::f32: scan<float>(a, p, plan, stream); break;
      case DType::f16: scan<Half>(a, p, plan, stream); break;
      case DType::bf16: scan<BFloat16>(a, p, plan, stream); break;
    }
    if (plan.images) fold({{work.images, p.sum_routes ? plan.images : 1, elements, p.y.data, p.y.dtype}}, stream);
  });
}

}  // namespace vmddpm
