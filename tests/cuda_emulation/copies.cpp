#include "copies.h"

#include "sanitizers.h"
#include "scheduler.h"

namespace vmddpm {
namespace emulation {
namespace {

constexpr char kPoison = '\xff';

bool aligned(const void* address, int bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

}  // namespace

void Copies::start(void* to, const void* from, int bytes, int valid, Site site) {
  Copy copy{static_cast<char*>(to), static_cast<const char*>(from), bytes, valid, committed_, site, {}};
  const int64_t offset = copy.to - here.shared;
  if (!aligned(to, bytes) || !aligned(from, bytes)) {
    fail(site, "a copy of %d bytes from %p to byte %lld of shared memory: both addresses must be multiples of %d",
         bytes, from, static_cast<long long>(offset), bytes);
  }
  if (valid < 0 || valid > bytes) fail(site, "a copy of %d bytes of which %d are valid", bytes, valid);
  if (offset < 0 || offset + bytes > shared_bytes()) {
    fail(site, "a copy to bytes %lld to %lld of the block's %lld bytes of shared memory",
         static_cast<long long>(offset), static_cast<long long>(offset + bytes - 1),
         static_cast<long long>(shared_bytes()));
  }
  if (end_ - first_ == kMost) fail(site, "more than %d copies under way in one thread", static_cast<int>(kMost));
  if (valid > 0) observe_read(from, static_cast<size_t>(valid));
  observe_write(to, static_cast<size_t>(bytes));
  for (int i = 0; i < valid; ++i) copy.source[i] = copy.from[i];
  for (int i = 0; i < bytes; ++i) copy.to[i] = kPoison;
  queue_[end_++ % kMost] = copy;
}

void Copies::wait(int pending, Site site) {
  while (!empty() && queue_[first_ % kMost].group < committed_ - pending) complete(queue_[first_++ % kMost], site);
}

void Copies::complete(const Copy& copy, Site site) {
  for (int i = 0; i < copy.bytes; ++i) {
    if (copy.to[i] != kPoison) {
      fail(site, "the target of the copy started at %s:%d was written before it was complete",
           base_name(copy.site.file), copy.site.line);
    }
  }
  for (int i = 0; i < copy.valid; ++i) {
    if (copy.from[i] != copy.source[i]) {
      fail(site, "the source of the copy started at %s:%d was written before it was complete",
           base_name(copy.site.file), copy.site.line);
    }
  }
  if (copy.valid > 0) observe_read(copy.from, static_cast<size_t>(copy.valid));
  observe_write(copy.to, static_cast<size_t>(copy.bytes));
  for (int i = 0; i < copy.bytes; ++i) copy.to[i] = i < copy.valid ? copy.from[i] : '\0';
}

}  // namespace emulation
}  // namespace vmddpm
