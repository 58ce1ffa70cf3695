// Runtime of kernels translated from PTX: instructions without a C++ operator, checked memory and, if compiled in,
// counters (PTX_COUNT) and planted faults (PTX_FAULTS).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "half.h"
#include "scheduler.h"

namespace vmddpm {
namespace ptx {

using emulation::Site;

// Defined in the code that ptx_to_cpp.py writes for the kernel.
extern const int64_t kParameterBytes;
extern const int kMostThreads, kBlocks, kLines;
extern void (*const kernel)(const void*);

// A tensor argument of the kernel. Its addresses carry its number, from 1, in the upper 16 bits, which real addresses
// do not use, so each access is checked against the argument from whose pointer it was computed.
struct Argument {
  uint64_t low, high;
};
constexpr int kTagShift = 48;
extern const Argument* arguments;
extern uint64_t argument_count;

[[noreturn]] void refuse_global(uint64_t at, int bytes, int alignment, Site site);
[[noreturn]] void refuse_shared(uint64_t at, int bytes, Site site);
[[noreturn]] void refuse_parameter(int64_t at, int bytes, Site site);

// The blocks of the grid to run; null for all.
extern const int64_t* chosen_blocks;
inline int64_t block_number() { return chosen_blocks ? chosen_blocks[emulation::here.block] : emulation::here.block; }

#if defined(PTX_COUNT)
void count_block(int block);
void count_access(uint64_t at, int bytes, bool writes, int line);
#define BLOCK(number) count_block(number)
#elif defined(PTX_FAULTS)
void visit_block(int block);
#define BLOCK(number) visit_block(number)
#else
#define BLOCK(number)
#endif

// Kinds of planted faults: a barrier left out, one more group of copies that may be pending, a guard inverted, an
// address off by 4.
enum Fault { kNone, kBarrier, kWait, kGuard, kOffset };
#if defined(PTX_FAULTS)
extern int planted_kind, planted_line;
#define FAULT(kind, line) (planted_kind == (kind) && planted_line == (line))
#else
#define FAULT(kind, line) false
#endif

// Registers: untyped bits, except float and double, which have their own C++ types.

template <typename T, typename Bits>
inline T from_bits(Bits bits) {
  static_assert(sizeof(T) == sizeof(Bits), "bits of the same size");
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T, typename U>
inline T read(U value) {
  if constexpr (std::is_floating_point_v<T> != std::is_floating_point_v<U>) {
    return from_bits<T>(value);
  } else {
    static_assert(!std::is_floating_point_v<T> || std::is_same_v<T, U>, "one precision");
    return static_cast<T>(value);
  }
}

template <typename Register, typename V>
inline void write(Register& to, V value) {
  if constexpr (std::is_same_v<Register, bool>) {
    static_assert(std::is_same_v<V, bool>, "a predicate");
    to = value;
  } else {
    to = read<Register>(value);
  }
}

// Arithmetic.

template <typename U, typename T>
inline U product(T a, T b) {
  return static_cast<U>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}

template <typename T>
inline T high_half(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
}

template <typename T>
inline T quotient(T a, T b, Site site) {
  if (b == 0) emulation::fail(site, "division by zero");
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? static_cast<T>(0 - static_cast<uint64_t>(a)) : static_cast<T>(a / b);
}

template <typename T>
inline T remainder(T a, T b, Site site) {
  if (b == 0) emulation::fail(site, "division by zero");
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? T(0) : static_cast<T>(a % b);
}

template <typename T>
inline T shifted_left(T value, uint32_t by) {
  return by >= 8 * sizeof(T) ? T(0) : static_cast<T>(static_cast<std::make_unsigned_t<T>>(value) << by);
}

template <typename T>
inline T shifted_right(T value, uint32_t by) {
  constexpr uint32_t size = 8 * sizeof(T);
  if (std::is_signed_v<T>) return static_cast<T>(value >> (by < size ? by : size - 1));
  return by < size ? static_cast<T>(value >> by) : T(0);
}

template <typename T>
inline T bit_field(T value, uint32_t start, uint32_t length) {
  using Bits = std::make_unsigned_t<T>;
  constexpr uint32_t size = 8 * sizeof(T);
  start &= 255, length &= 255;
  const uint64_t bits = static_cast<Bits>(value), all = ~uint64_t{0};
  const uint32_t left = start < size ? size - start : 0, kept = length < left ? length : left;
  uint64_t field = kept == 0 ? 0 : bits >> start & all >> (64 - kept);
  if (std::is_signed_v<T> && length > 0 && kept < 64) {  // beyond it, its last bit
    const uint32_t last = start + length < size ? start + length - 1 : size - 1;
    if (bits >> last & 1) field |= all << kept;
  }
  return static_cast<T>(field);
}

// `into` with the low bits of `value` inserted at `start`.
template <typename T>
inline T with_bit_field(T value, T into, uint32_t start, uint32_t length) {
  static_assert(std::is_unsigned_v<T>, "bfi of an unsigned type");
  const T ones = bit_field<T>(~T(0), 0, length), mask = shifted_left<T>(ones, start & 255);
  return static_cast<T>((into & ~mask) | (shifted_left<T>(value, start & 255) & mask));
}

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float smaller(float a, float b) { return __builtin_fminf(a, b); }
inline double smaller(double a, double b) { return __builtin_fmin(a, b); }
inline float larger(float a, float b) { return __builtin_fmaxf(a, b); }
inline double larger(double a, double b) { return __builtin_fmax(a, b); }
inline float magnitude(float a) { return __builtin_fabsf(a); }
inline double magnitude(double a) { return __builtin_fabs(a); }

template <typename T>
inline T smaller_or_nan(T a, T b) {
  return a != a ? a : b != b ? b : smaller(a, b);
}

template <typename T>
inline T larger_or_nan(T a, T b) {
  return a != a ? a : b != b ? b : larger(a, b);
}

// As cvt does: NaN becomes zero, and values out of range are clamped.
template <typename T>
inline T to_integer(double value) {
  if (value != value) return T(0);
  if (value <= static_cast<double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (value >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(value);
}

inline float reciprocal(float x) { return 1.0f / x; }

// rcp.approx.ftz.f64 reads and writes the upper half of a double.
inline double reciprocal(double x) {
  const auto upper = [](double v) { return from_bits<double>(from_bits<uint64_t>(v) & 0xffffffff00000000ull); };
  return upper(1.0 / upper(x));
}

inline void whole_warp(uint32_t clamp, uint32_t members, Site site) {
  if (clamp != 31 || members != 0xffffffffu) emulation::fail(site, "a shuffle of fewer than 32 lanes");
}

// The value of that lane of this warp. All lanes write before any reads, and read before any writes again.
inline uint32_t value_of_lane(uint32_t value, int lane, Site site) {
  static uint32_t values[emulation::kMostThreads];
  const int thread = emulation::here.thread;
  uint32_t none = 0;
  values[thread] = value;
  emulation::exchange(&none, 1, 4, 0, site);
  value = values[thread - thread % emulation::kLanes + lane % emulation::kLanes];
  emulation::exchange(&none, 1, 4, 0, site);
  return value;
}

// Memory.

// Generic addresses of shared memory begin here.
constexpr uint64_t kSharedWindow = uint64_t{1} << 44;

template <typename T>
inline T load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
inline void store(char* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

inline char* global(uint64_t at, int bytes, int alignment, [[maybe_unused]] bool writes, Site site) {
  const uint64_t number = (at >> kTagShift) - 1, place = at << 16 >> 16;
  if (__builtin_expect(number >= argument_count || place < arguments[number].low ||
                           place + static_cast<uint64_t>(bytes) > arguments[number].high ||
                           (place & static_cast<uint64_t>(alignment - 1)),
                       0)) {
    refuse_global(at, bytes, alignment, site);
  }
#if defined(PTX_COUNT)
  count_access(at, bytes, writes, site.line);
#endif
  return reinterpret_cast<char*>(place);
}

inline char* shared(uint64_t at, int bytes, Site site) {
  if (at >= kSharedWindow) at -= kSharedWindow;
  if (__builtin_expect(at + static_cast<uint64_t>(bytes) > static_cast<uint64_t>(emulation::shared_bytes()) ||
                           (at & static_cast<uint64_t>(bytes - 1)),
                       0)) {
    refuse_shared(at, bytes, site);
  }
  return emulation::here.shared + at;
}

// stmatrix and ldmatrix: matrices of 8 x 8 halves; lane 8 m + r gives the address of row r of matrix m. A lane holds
// two neighbours of each matrix, in row lane / 4, or in column lane / 4 if transposed.
template <int matrices, bool transposed, typename Element>
inline void each_element(uint64_t row, Site site, Element element) {
  static uint64_t rows[emulation::kMostThreads];
  const int thread = emulation::here.thread, lane = thread % emulation::kLanes, warp = thread - lane;
  uint32_t none = 0;
  rows[thread] = row;
  emulation::exchange(&none, 1, 4, 0, site);
  for (int m = 0; m < matrices; ++m) {
    for (int half = 0; half < 2; ++half) {
      const int r = transposed ? 2 * (lane % 4) + half : lane / 4, c = transposed ? lane / 4 : 2 * (lane % 4) + half;
      element(shared(rows[warp + 8 * m + r], 16, site) + 2 * c, m, 16 * half);
    }
  }
  emulation::exchange(&none, 1, 4, 0, site);
}

template <int matrices, bool transposed>
inline void store_matrices(uint64_t row, const uint32_t (&values)[matrices], Site site) {
  each_element<matrices, transposed>(row, site, [&](char* place, int m, int shift) {
    store(place, static_cast<uint16_t>(values[m] >> shift));
  });
}

template <int matrices, bool transposed>
inline void load_matrices(uint64_t row, uint32_t (&values)[matrices], Site site) {
  for (uint32_t& value : values) value = 0;
  each_element<matrices, transposed>(row, site, [&](char* place, int m, int shift) {
    values[m] |= static_cast<uint32_t>(load<uint16_t>(place)) << shift;
  });
}

inline const char* parameter(uint64_t at, int bytes, const void* all, Site site) {
  const int64_t offset = static_cast<int64_t>(at - reinterpret_cast<uint64_t>(all));
  if (__builtin_expect(offset < 0 || offset + bytes > kParameterBytes || offset % bytes, 0)) {
    refuse_parameter(offset, bytes, site);
  }
  return reinterpret_cast<const char*>(at);
}

inline void copy(uint64_t to, uint64_t from, int bytes, int valid, Site site) {
  const char* source = reinterpret_cast<const char*>(from << 16 >> 16);
  if (valid > 0 && valid <= bytes) source = global(from, valid, bytes, false, site);
  emulation::start_copy(shared(to, bytes, site), source, bytes, valid, site);
}

}  // namespace ptx
}  // namespace vmddpm
