// Programs without a fault, each of which would fail if the emulation did one thing wrong.
#include <cmath>
#include <cstring>
#include <limits>

#include "selftest.h"

namespace selftest {
namespace {

// Sums all threads' values by a tree over shared memory: a barrier a level.
VMDDPM_KERNEL(kThreads, 1) tree_sum(VMDDPM_ARGUMENTS(Arrays) a) {
  float* values = shared_floats();
  const int t = thread();
  values[t] = a.in[block() * threads() + t];
  for (int half = threads() / 2; half > 0; half /= 2) {
    barrier();
    if (t < half) values[t] += values[t + half];
  }
  if (t == 0) a.out[block()] = values[0];
}

bool sums_are_right(int blocks, int threads) {
  std::vector<float> in(static_cast<size_t>(blocks) * threads), out(blocks);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 97);
  launch("tree_sum", &tree_sum, blocks, threads, threads * 4, nullptr,
         Arrays{in.data(), out.data(), static_cast<int>(in.size())});
  for (int b = 0; b < blocks; ++b) {
    float sum = 0;
    for (int t = 0; t < threads; ++t) sum += in[static_cast<size_t>(b) * threads + t];
    if (out[b] != sum) return false;
  }
  return true;
}

bool barriers() { return sums_are_right(3, 1024) && sums_are_right(5, 32) && sums_are_right(1, 256); }
bool many_blocks() { return sums_are_right(450, 32); }

// Every lane ends with the sum over its warp, of n values of a type.
template <typename T, int n>
VMDDPM_KERNEL(128, 1) butterfly(VMDDPM_ARGUMENTS(Arrays) a) {
  T sums[n];
  for (int i = 0; i < n; ++i) sums[i] = T(thread() * (i + 1));
  for (int mask = 1; mask < kWarp; mask *= 2) {
    T others[n];
    for (int i = 0; i < n; ++i) others[i] = sums[i];
    exchange(others, mask);
    for (int i = 0; i < n; ++i) sums[i] += others[i];
  }
  T unchanged[1] = {sums[0]};
  exchange(unchanged, 0);
  const T first = T(thread() / kWarp * kWarp);
  bool right = unchanged[0] == sums[0];
  for (int i = 0; i < n; ++i) right = right && sums[i] == T(i + 1) * (first * T(32) + T(496));
  a.out[thread()] = right ? 1.0f : 0.0f;
}

VMDDPM_KERNEL(128, 1) swap_halves(VMDDPM_ARGUMENTS(Arrays) a) {
  Half values[3];
  for (int i = 0; i < 3; ++i) narrow(static_cast<float>(thread() + i), values[i]);
  exchange(values, 21);
  const float from = static_cast<float>(thread() ^ 21);
  a.out[thread()] = widen(values[0]) == from && widen(values[2]) == from + 2 ? 1.0f : 0.0f;
}

bool exchanges() {
  for (const auto kernel : {&butterfly<float, 1>, &butterfly<float, 7>, &butterfly<double, 4>, &butterfly<int, 16>,
                            &butterfly<int64_t, 3>, &swap_halves}) {
    std::vector<float> out(128);
    launch("butterfly", kernel, 1, 128, 0, nullptr, Arrays{nullptr, out.data(), 128});
    for (const float right : out) {
      if (right != 1.0f) return false;
    }
  }
  return true;
}

// Sums tiles of one copy a thread, which are fetched two tiles ahead into a ring of three.
template <int bytes>
VMDDPM_KERNEL(kThreads, 1) ring_sum(VMDDPM_ARGUMENTS(Arrays) a) {
  constexpr int kStages = 3, kValues = bytes / 4;
  const int tile = threads() * kValues, tiles = (a.count + tile - 1) / tile;
  const auto fetch = [&](int i) {
    if (i < tiles) {
      const int first = i * tile + thread() * kValues, left = a.count - first;
      const int valid = left < 0 ? 0 : left > kValues ? kValues : left;
      float* to = shared_floats() + i % kStages * tile + thread() * kValues;
      copy_async<bytes>(to, valid ? a.in + first : nullptr, valid * 4);
    }
    commit_copies();
  };
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  float sum = 0;
  for (int i = 0; i < tiles; ++i) {
    wait_copies<kStages - 2>();
    barrier();
    for (int j = thread(); j < tile; j += threads()) sum += shared_floats()[i % kStages * tile + tile - 1 - j];
    fetch(i + kStages - 1);
  }
  a.out[thread()] = sum;
}

bool copies() {
  for (const auto kernel : {&ring_sum<4>, &ring_sum<8>, &ring_sum<16>}) {
    // 16-byte aligned as a tensor is, and of exactly the size that may be read.
    std::vector<float> in(1003, 1.0f), out(kThreads);
    launch("ring_sum", kernel, 1, kThreads, 3 * kThreads * 16, nullptr, Arrays{in.data(), out.data(), 1003});
    float sum = 0;
    for (const float value : out) sum += value;
    if (sum != 1003) return false;
  }
  return true;
}

VMDDPM_KERNEL(kThreads, 1) add_neighbour(VMDDPM_ARGUMENTS(Arrays) a) {
  const int i = static_cast<int>(block()) * threads() + thread();
  a.out[i] = a.in[(i + threads()) % a.count] + 1.0f;
}

// Each launch reads what other blocks of the launch before it wrote.
bool launches() {
  constexpr int kBlocks = 6;
  std::vector<float> a(kBlocks * kThreads, 0.0f), b = a;
  for (int i = 0; i < 10; ++i) {
    launch_here(&add_neighbour, kBlocks, Arrays{a.data(), b.data(), kBlocks * kThreads});
    a.swap(b);
  }
  launch_here(&add_neighbour, 0, Arrays{});
  for (const float value : a) {
    if (value != 10.0f) return false;
  }
  return true;
}

// Every finite value comes back, and what lies between two neighbours goes to the nearer, or to the even one.
template <typename Format>
bool rounds_once() {
  const auto value = [](int bits) { return static_cast<double>(widen(Format{static_cast<uint16_t>(bits)})); };
  const auto rounded = [](double v) {
    Format out;
    narrow(v, out);
    return out.bits;
  };
  const int infinite = ((1 << Format::kExponent) - 1) << Format::kMantissa;
  for (int bits = 0; bits < infinite; ++bits) {
    const double here = value(bits), step = bits + 1 < infinite ? value(bits + 1) - here : here - value(bits - 1);
    const double middle = here + step / 2;
    if (rounded(here) != bits || rounded(-here) != (bits | 0x8000)) return false;
    if (rounded(middle) != bits + bits % 2) return false;
    if (rounded(std::nextafter(middle, 0.0)) != bits) return false;
    if (rounded(std::nextafter(middle, 1e300)) != bits + 1) return false;
    Format from_float;
    narrow(static_cast<float>(here + step / 4), from_float);
    if (from_float.bits != bits) return false;
  }
  const double inf = std::numeric_limits<double>::infinity();
  return std::isinf(value(infinite)) && std::isnan(value(infinite + 1)) && rounded(inf) == infinite &&
         rounded(-inf) == (infinite | 0x8000) && std::isnan(value(rounded(std::nan("")))) &&
         rounded(1e300) == infinite && rounded(5e-324) == 0;
}

bool conversions() {
  return rounds_once<Half>() && rounds_once<BFloat16>() && widen(Half{0x3c00}) == 1.0f && widen(Half{1}) == 0x1p-24f &&
         widen(Half{0xfbff}) == -65504.0f && widen(BFloat16{0x3f80}) == 1.0f && widen(BFloat16{1}) == 0x1p-133f;
}

// What test_emulation.py knows the numbers of.
VMDDPM_KERNEL(kThreads, 1) moving(VMDDPM_ARGUMENTS(Arrays) a) {
  const int t = thread();
  float* const kept = shared_floats();
  const Vector<float> vector = read_vector(a.in + 4 * t);                   // 512 bytes a warp
  const float apart = read(a.in + 8 * t);                                   // a sector each
  const float half = read_if(t % 2 == 0, a.in + 1 + t);                     // half of the lanes, from within a sector
  write_shared(kept + t, vector.at[0] + apart + half);                      // every bank once
  barrier();
  const float same = read_shared(kept + t / kWarp), far = read_shared(kept + 2 * t % kThreads);  // one word; two of a bank
  float* const out = a.out + block() * 3 * kThreads;
  write(out + t, same + far);
  write_if(t == 0, out + kThreads, same);
  Vector<float> result = {};
  if (t < 2) write_vector(out + 2 * kThreads + 4 * t, result);
}

bool moves() {
  alignas(32) static float in[8 * kThreads], out[2 * 3 * kThreads];
  launch_here(&moving, 2, Arrays{in, out, 0});
  return true;
}

bool special_functions() {
  const float inf = std::numeric_limits<float>::infinity();
  return exp2_unit(0.0f) == 1.0f && exp2_unit(-126.0f) == 0x1p-126f && exp2_unit(-126.5f) == 0.0f &&
         exp2_unit(-inf) == 0.0f && exp2_unit(128.0f) == inf && exp2_unit(1e-40f) == 1.0f &&
         std::isnan(exp2_unit(std::nanf(""))) && reciprocal_unit(4.0f) == 0.25f && reciprocal_unit(0x1p127f) == 0.0f &&
         reciprocal_unit(-1e-40f) == -inf && reciprocal_unit(-inf) == 0.0f;
}

}  // namespace

const std::vector<Case> clean = {
    {"barriers", &barriers}, {"many_blocks", &many_blocks}, {"exchanges", &exchanges},
    {"copies", &copies},     {"launches", &launches},       {"conversions", &conversions},
    {"special_functions", &special_functions},              {"moves", &moves},
};

}  // namespace selftest
