// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; cpu.cpp picks one at run time.
#include "cpu.h"
#include "cpu_lane_jobs.h"
#include "cpu_plane_jobs.h"
#include "cpu_row_jobs.h"
#include "cpu_strided.h"

VMDDPM_DECLARE_CROSS_SCAN(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {
namespace {

constexpr int64_t kCacheBytes = 10 << 20;  // larger results are written past the cache

// A lane job follows the table with a register of channels for each pixel; a plane job transposes each plane first. Lane
// jobs are faster up to so many pixels, in copies between planes, copies of rows to planes ("turns"), and sums.
constexpr int64_t kFewToCopy = 640, kFewToTurn = 4096, kFewToSum = 1280;
// But above kFewToConflict pixels, planes that are a multiple of kConflict bytes apart compete for the same cache sets.
constexpr int64_t kFewToConflict = 160, kConflict = 1 << 10;

Layout layout_of(const View& view, const CrossScanParams& p) {
  // With a single pixel or channel both axes are contiguous; the longer one counts.
  if (view.stride[2] == 1 && (view.stride[3] != 1 || p.length >= p.channels)) return Layout::planes;
  return view.stride[3] == 1 ? Layout::rows : Layout::other;
}

// Whether a lane job is faster than a plane job. It needs a register full of channels.
bool wants_lanes(const Job& job, bool sum) {
  const int64_t length = job.walks.length;
  if (job.channels < kMostSide) return false;
  if (length > kFewToConflict && length * size_of(job.to.dtype) % kConflict == 0) return false;
  const bool turn = job.from_layout == Layout::rows;
  return length <= (sum ? kFewToSum : turn ? kFewToTurn : kFewToCopy);
}

// inverse[k][table[k][l]] = l.
const int32_t* inverse_of(const CrossScanParams& p) {
  int32_t* const inverse = table_workspace.reserve<int32_t>(p.routes * p.length);
  for (int64_t k = 0; k < p.routes; ++k) {
    const int32_t* const table = p.table + k * p.length;
    for (int64_t l = 0; l < p.length; ++l) inverse[k * p.length + table[l]] = static_cast<int32_t>(l);
  }
  return inverse;
}

// A table of the pixels of regular walks.
const int32_t* pixels_of(const CrossScanParams& p, bool undone) {
  int32_t* const pixels = table_workspace.reserve<int32_t>(p.routes * p.length);
  for (int64_t k = 0; k < p.routes; ++k) {
    steps_of_pixels(regular_walk(p.height, p.width, p.scans, k, !undone), 0, p.length, pixels + k * p.length);
  }
  return pixels;
}

enum class Action { scan, put_back, sum };

Job job_of(const CrossScanParams& p, Action action) {
  const bool scan = action == Action::scan, undone = action == Action::put_back;
  const View &from = scan ? p.image : p.sequences, &to = scan ? p.sequences : p.image;
  const int64_t images = p.batch * (action == Action::sum ? 1 : p.routes);
  const int64_t bytes = images * p.length * p.channels * size_of(to.dtype);
  Job job{p.batch, p.routes, p.channels, Walks(p, undone), from, to, layout_of(from, p), layout_of(to, p), p.threads,
          bytes > kCacheBytes};
  const Layout along = action == Action::sum ? job.from_layout : job.to_layout;
  // Sequences of planes are processed by steps, all others by pixels.
  const bool by_steps = along == Layout::planes && job.from_layout != Layout::other && job.to_layout != Layout::other;
  if (p.table) {
    (by_steps ? job.walks.pixels : job.walks.steps) = by_steps == undone ? inverse_of(p) : p.table;
  } else if (by_steps && wants_lanes(job, action == Action::sum)) {
    job.walks.pixels = pixels_of(p, undone);
  }
  return job;
}

template <typename T>
void copy(const Job& job) {
  if (job.from_layout == Layout::other || job.to_layout == Layout::other) return copy_strided<T>(job);
  if (job.to_layout == Layout::rows) return copy_rows<T>(job);
  return job.walks.pixels ? copy_lanes<T>(job) : copy_planes<T>(job);
}

void copy_any(const Job& job) {
  switch (job.to.dtype) {
    case DType::f64: return copy<uint64_t>(job);
    case DType::f32: return copy<uint32_t>(job);
    case DType::f16:
    case DType::bf16: return copy<uint16_t>(job);
  }
}

template <typename Acc, typename T>
void sum(const Job& job) {
  if (job.from_layout == Layout::other || job.to_layout == Layout::other) return sum_strided<Acc, T>(job);
  if (job.from_layout == Layout::rows) return sum_rows<Acc, T>(job);
  return job.walks.pixels ? sum_lanes<Acc, T>(job) : sum_planes<Acc, T>(job);
}

}  // namespace

void cross_scan(const CrossScanParams& p) { copy_any(job_of(p, Action::scan)); }

void cross_merge(const CrossScanParams& p) {
  if (!p.sum_routes) return copy_any(job_of(p, Action::put_back));
  const Job job = job_of(p, Action::sum);
  switch (p.sequences.dtype) {
    case DType::f64: return sum<double, double>(job);
    case DType::f32: return sum<float, float>(job);
    case DType::f16: return sum<float, Half>(job);
    case DType::bf16: return sum<float, BFloat16>(job);
  }
}

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
