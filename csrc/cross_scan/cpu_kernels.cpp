// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; cpu.cpp picks one at run time.
#include "cpu.h"
#include "cpu_plane_jobs.h"
#include "cpu_row_jobs.h"
#include "cpu_strided.h"

VMDDPM_DECLARE_CROSS_SCAN(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {
namespace {

constexpr int64_t kCacheBytes = 16 << 20;  // larger results are written past the cache

// inverse[k][table[k][l]] = l.
const int32_t* inverse_of(const CrossScanParams& p) {
  int32_t* const inverse = inverse_scratch.reserve<int32_t>(p.routes * p.length);
  for (int64_t k = 0; k < p.routes; ++k) {
    for (int64_t l = 0; l < p.length; ++l) inverse[k * p.length + p.table[k * p.length + l]] = static_cast<int32_t>(l);
  }
  return inverse;
}

Job job_of(const CrossScanParams& p, const View& from, const View& to, bool undone) {
  const int64_t bytes = p.batch * p.routes * p.length * p.channels * size_of(to.dtype);
  const Walks walks{p.height, p.width, p.length, p.scans, p.table, p.table ? inverse_of(p) : nullptr, undone};
  return {p.batch, p.routes, p.channels, walks, from, to, p.threads, bytes > kCacheBytes};
}

enum class Layout { planes, rows, other };

Layout layout_of(const View& view, const Job& job) {
  if (has_planes(view, job.walks.length, job.channels)) return Layout::planes;
  return has_rows(view, job.walks.length, job.channels) ? Layout::rows : Layout::other;
}

template <typename T>
void copy(const Job& job) {
  const Layout from = layout_of(job.from, job), to = layout_of(job.to, job);
  if (from == Layout::other || to == Layout::other) return copy_strided<T>(job);
  return to == Layout::planes ? copy_planes<T>(job) : copy_rows<T>(job);
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
  const Layout from = layout_of(job.from, job), to = layout_of(job.to, job);
  if (from == Layout::other || to == Layout::other) return sum_strided<Acc, T>(job);
  return from == Layout::planes ? sum_planes<Acc, T>(job) : sum_rows<Acc, T>(job);
}

}  // namespace

void cross_scan(const CrossScanParams& p) { copy_any(job_of(p, p.image, p.sequences, false)); }

void cross_merge(const CrossScanParams& p) {
  if (!p.sum) return copy_any(job_of(p, p.sequences, p.image, true));
  const Job job = job_of(p, p.sequences, p.image, false);
  switch (p.sequences.dtype) {
    case DType::f64: return sum<double, double>(job);
    case DType::f32: return sum<float, float>(job);
    case DType::f16: return sum<float, Half>(job);
    case DType::bf16: return sum<float, BFloat16>(job);
  }
}

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
