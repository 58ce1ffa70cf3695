// The asynchronous copies of one thread; none is done until the thread waits for it.
#pragma once
#include <cstdint>

#include "emulation.h"

namespace vmddpm {
namespace emulation {

class Copies {
 public:
  void clear() { first_ = end_ = committed_ = 0; }
  bool empty() const { return first_ == end_; }

  // Fills the target with NaN: its contents are undefined for other threads, and for this one until it waits.
  void start(void* to, const void* from, int bytes, int valid, Site site);
  void commit() { ++committed_; }
  // Completes the copies of all groups but the latest `pending`.
  void wait(int pending, Site site);
  Site oldest() const { return queue_[first_ % kMost].site; }

 private:
  static constexpr int64_t kMost = 512;  // in flight; more than any reasonable pipeline has

  struct Copy {
    char* to;
    const char* from;
    int bytes, valid;
    int64_t group;
    Site site;
    char source[16];  // its bytes at the start
  };

  void complete(const Copy& copy, Site site);

  Copy queue_[kMost];
  int64_t first_, end_, committed_;
};

}  // namespace emulation
}  // namespace vmddpm
