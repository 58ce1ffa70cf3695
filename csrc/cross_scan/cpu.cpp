// Code shared by all instruction sets: the choice of kernels, number of threads and page size.
#include "cpu.h"

#include <cstring>

#include "../dispatch.h"
#include "../common/lanes.h"
#include "../common/pages.h"

VMDDPM_DECLARE_CROSS_SCAN(baseline)
#ifdef VMDDPM_X86
VMDDPM_DECLARE_CROSS_SCAN(avx2)
VMDDPM_DECLARE_CROSS_SCAN(avx512)
#endif

namespace vmddpm {
namespace {

struct Kernels {
  const char* isa;
  void (*scan)(const CrossScanParams&);
  void (*merge)(const CrossScanParams&);
};

const Kernels kKernels[] = {
#ifdef VMDDPM_X86
    {"avx512", avx512::cross_scan, avx512::cross_merge},
    {"avx2", avx2::cross_scan, avx2::cross_merge},
#endif
    {"baseline", baseline::cross_scan, baseline::cross_merge},
};

const Kernels& choose() {
  const char* const isa = cpu_kernels().isa;
  const Kernels* kernels = kKernels;
  while (std::strcmp(kernels->isa, isa) != 0) ++kernels;
  return *kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

// A second thread is worth its cost only for more than about ten microseconds of copying.
int useful_threads(const CrossScanParams& p) {
  constexpr int64_t kBytes = 256 << 10;  // copied by a thread in that time
  const int64_t useful = p.batch * p.routes * p.length * p.channels * size_of(p.sequences.dtype) / kBytes;
  return useful < 1 ? 1 : useful < p.threads ? static_cast<int>(useful) : p.threads;
}

// For a result that is written completely.
void prefer_large_pages_for(const View& view, const CrossScanParams& p) {
  const int64_t last = (p.batch - 1) * view.stride[0] + (p.routes - 1) * view.stride[1] +
                       (p.length - 1) * view.stride[2] + (p.channels - 1) * view.stride[3];
  prefer_large_pages(view.data, (last + 1) * size_of(view.dtype));
}

bool is_empty(const CrossScanParams& p) { return p.batch == 0 || p.routes == 0 || p.length == 0 || p.channels == 0; }

}  // namespace

void cross_scan_cpu(const CrossScanParams& params) {
  if (is_empty(params)) return;
  CrossScanParams p = params;
  p.threads = useful_threads(p);
  prefer_large_pages_for(p.sequences, p);
  kernels().scan(p);
}

void cross_merge_cpu(const CrossScanParams& params) {
  if (is_empty(params)) return;
  CrossScanParams p = params;
  p.threads = useful_threads(p);
  if (p.sum_routes) p.image.stride[1] = 0;
  prefer_large_pages_for(p.image, p);
  kernels().merge(p);
}

}  // namespace vmddpm
