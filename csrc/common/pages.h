// Large pages: the first access to each page costs more than the work on it.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vmddpm {

// Requests pages of 2 MiB from the system for the untouched part of a large array.
inline void prefer_large_pages(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kPage = int64_t(2) << 20;
  char* const first = static_cast<char*>(start) + (kPage - reinterpret_cast<intptr_t>(start) % kPage) % kPage;
  const int64_t whole = (static_cast<char*>(start) + bytes - first) / kPage * kPage;
  if (bytes >= kPage && whole > 0) madvise(first, static_cast<size_t>(whole), MADV_HUGEPAGE);  // a hint: it may fail
#else
  (void)start;
  (void)bytes;
#endif
}

}  // namespace vmddpm
