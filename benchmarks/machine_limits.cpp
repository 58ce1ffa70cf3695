// The limits of this processor for the CPU kernels, measured with them.
//
//   copy        bytes read and written per second, DRAM to DRAM, with plain and with non-temporal stores
//   exp2, softplus
//               the kernels' own 2^v and log(1 + e^v), registers only
//   forward N, backward N
//               the recurrence of N states with nothing around it: channels in lanes, all operands in the first-level
//               cache, the same 2^v, every product and sum that the operator is defined by and no other. The lanes'
//               shares of dB and dC are left unsummed, as one sum over lanes can serve any number of channels.
// An element is one (batch, channel, step). Prints JSON; arguments: numbers of threads to measure with.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "../csrc/common/math.h"

namespace {

using V = Vec<float>;
constexpr int kSteps = 32;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of so many runs of work(thread, repeats) on all threads at once, in repeats per second.
template <typename Work>
double rate(int threads, double seconds_a_run, int runs, Work work) {
  const auto run = [&](long repeats) {
    std::vector<std::thread> pool;
    const double start = seconds();
    for (int t = 1; t < threads; ++t) pool.emplace_back([&, t] { work(t, repeats); });
    work(0, repeats);
    for (std::thread& thread : pool) thread.join();
    return seconds() - start;
  };
  long repeats = 1;
  while (run(repeats) < seconds_a_run / 4) repeats *= 2;
  double best = 1e9;
  for (int i = 0; i < runs; ++i) best = std::min(best, run(repeats * 4));
  return repeats * 4 / best;
}

struct Tile {
  alignas(64) V delta[kSteps], drive[kSteps], dy[kSteps], y[kSteps], ddrive[kSteps], ddelta[kSteps];
  alignas(64) V decay[kSteps * 16], decayed[kSteps * 16];
  alignas(64) V A[16], h[16], dh[16], dA[16], lanes_of_dB[16], lanes_of_dC[16];
  alignas(64) float B[kSteps * 16], C[kSteps * 16];
  Tile() {
    for (int i = 0; i < kSteps; ++i) {
      delta[i] = splat(0.01f + 0.001f * static_cast<float>(i));
      drive[i] = dy[i] = splat(0.5f);
      y[i] = ddrive[i] = ddelta[i] = V{};
    }
    for (int s = 0; s < 16; ++s) {
      A[s] = splat(-1.0f - static_cast<float>(s));
      h[s] = dh[s] = dA[s] = lanes_of_dB[s] = lanes_of_dC[s] = V{};
    }
    for (int i = 0; i < kSteps * 16; ++i) B[i] = C[i] = 0.5f;
  }
};

template <int S>
void forward(Tile& w, int n, int states) {
  V state[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) state[s] = w.h[n + s];
  for (int i = 0; i < kSteps; ++i) {
    const V delta = w.delta[i], drive = w.drive[i];
    V y[2] = {};
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      const V decayed = decay_lanes(delta * w.A[n + s]) * state[s];
      state[s] = decayed + drive * w.B[i * states + n + s];
      y[s & 1] += state[s] * w.C[i * states + n + s];
    }
    w.y[i] = y[0] + y[1];
  }
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) w.h[n + s] = state[s];
}

// With v = delta A and h_i = e^v h_{i-1} + drive B: first h again, then from the last step to the first
//   g = dh + C dy,  dC = dy h_i,  dB = g drive,  ddrive = g B,  dv = g e^v h_{i-1},  ddelta = dv A,  dA = dv delta,
//   dh = e^v g.
template <int S>
void backward(Tile& w, int n, int states) {
  V state[S], lanes_of_dC[S], lanes_of_dB[S], dA[S];
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    state[s] = w.h[n + s];
    lanes_of_dC[s] = w.lanes_of_dC[n + s];
  }
  for (int i = 0; i < kSteps; ++i) {
    const V delta = w.delta[i], drive = w.drive[i], dy = w.dy[i];
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      const V decay = decay_lanes(delta * w.A[n + s]);
      const V decayed = decay * state[s];
      w.decay[i * S + s] = decay;
      w.decayed[i * S + s] = decayed;
      state[s] = decayed + drive * w.B[i * states + n + s];
      lanes_of_dC[s] += dy * state[s];
    }
  }
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    w.h[n + s] = state[s];
    w.lanes_of_dC[n + s] = lanes_of_dC[s];
    lanes_of_dB[s] = w.lanes_of_dB[n + s];
    dA[s] = w.dA[n + s];
    state[s] = w.dh[n + s];
  }
  for (int i = kSteps - 1; i >= 0; --i) {
    const V delta = w.delta[i], drive = w.drive[i], dy = w.dy[i];
    V ddrive{}, ddelta{};
    VMDDPM_UNROLL
    for (int s = 0; s < S; ++s) {
      const V g = state[s] + dy * w.C[i * states + n + s];
      const V dv = g * w.decayed[i * S + s];
      state[s] = g * w.decay[i * S + s];
      lanes_of_dB[s] += g * drive;
      ddrive += g * w.B[i * states + n + s];
      ddelta += dv * w.A[n + s];
      dA[s] += dv * delta;
    }
    w.ddrive[i] = ddrive;
    w.ddelta[i] = ddelta;
  }
  VMDDPM_UNROLL
  for (int s = 0; s < S; ++s) {
    w.dh[n + s] = state[s];
    w.lanes_of_dB[n + s] = lanes_of_dB[s];
    w.dA[n + s] = dA[s];
  }
}

// Keeps the compiler from leaving out work on the tile, or moving it.
inline void touch(Tile* tile) { asm volatile("" : : "r"(tile) : "memory"); }

// Values per second of work(tile), one of each step and lane, at the best of several places in memory: at some, a loop
// over the same tile was measured to take twice the time.
template <typename Work>
double values(int threads, Work work) {
  constexpr int kPlaces = 4;
  std::vector<std::unique_ptr<Tile>> tiles;
  double best = 0;
  for (int place = 0; place < kPlaces; ++place) {
    const size_t first = tiles.size();
    for (int t = 0; t < threads; ++t) tiles.push_back(std::make_unique<Tile>());
    best = std::max(best, rate(threads, 0.05, 3, [&](int t, long repeats) {
      Tile* tile = tiles[first + static_cast<size_t>(t)].get();
      for (long i = 0; i < repeats; ++i) {
        work(*tile);
        touch(tile);
      }
    }));
  }
  return best * kSteps * kLanes<float> * threads;
}

template <typename Function>
double values_of(int threads, Function function) {
  return values(threads, [&](Tile& tile) {
    VMDDPM_UNROLL
    for (int s = 0; s < kSteps; ++s) tile.y[s] = function(tile.delta[s]);
  });
}

// Elements per second of loop<S> over N states.
template <int N, int S, typename Loop>
double elements(int threads, Loop loop) {
  return values(threads, [&](Tile& tile) {
    for (int n = 0; n < N; n += S) loop(tile, n, N);
  });
}

template <int N>
double forward_elements(int threads) {
  if (N == 1) return elements<N, 1>(threads, forward<1>);
  const double four = elements<N, 4>(threads, forward<4>), eight = elements<N, 8>(threads, forward<8>);
  return std::max(four, eight);
}

template <int N>
double backward_elements(int threads) {
  if (N == 1) return elements<N, 1>(threads, backward<1>);
  const double two = elements<N, 2>(threads, backward<2>), four = elements<N, 4>(threads, backward<4>);
  return std::max(two, four);
}

inline void stream(float* to, V v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)v);
#else
  store(to, v);
#endif
}

double copied_bytes(int threads, bool non_temporal) {
  constexpr size_t kFloats = size_t(16) << 20;  // 64 MiB each way
  float* from = static_cast<float*>(std::aligned_alloc(4096, kFloats * sizeof(float)));
  float* to = static_cast<float*>(std::aligned_alloc(4096, kFloats * sizeof(float)));
  std::memset(from, 1, kFloats * sizeof(float));
  std::memset(to, 0, kFloats * sizeof(float));
  const size_t share = kFloats / static_cast<size_t>(threads) / 64 * 64;
  const double copies = rate(threads, 0.1, 7, [&](int t, long repeats) {
    const size_t first = share * static_cast<size_t>(t);
    for (long i = 0; i < repeats; ++i) {
      for (size_t at = first; at < first + share; at += kLanes<float>) {
        if (non_temporal) {
          stream(to + at, load(from + at));
        } else {
          store(to + at, load(from + at));
        }
      }
      asm volatile("" : : "r"(to) : "memory");
    }
  });
  std::free(from);
  std::free(to);
  return copies * 2.0 * static_cast<double>(share * sizeof(float)) * threads;
}

}  // namespace

int main(int count, char** arguments) {
  std::printf("{\"lanes\": %d", kLanes<float>);
  for (int i = 1; i < count; ++i) {
    const int threads = std::atoi(arguments[i]);
    std::printf(", \"%d\": {\"copy\": %.4g, \"copy_non_temporal\": %.4g, ", threads,
                copied_bytes(threads, false), copied_bytes(threads, true));
    std::printf("\"exp2\": %.4g, \"softplus\": %.4g, ", values_of(threads, [](V v) { return decay_lanes(v); }),
                values_of(threads, [](V v) { return softplus_lanes<float>(v); }));
    std::printf("\"forward_16\": %.4g, \"backward_16\": %.4g, \"forward_1\": %.4g, \"backward_1\": %.4g}",
                forward_elements<16>(threads), backward_elements<16>(threads), forward_elements<1>(threads),
                backward_elements<1>(threads));
  }
  std::printf("}\n");
}
