// The threads of one block, as fibers.
//
// They run warp by warp. Each lane of a warp runs, in the configured order, until it stops at a barrier, an exchange or
// its end; all lanes must stop at the same place. Lanes at an exchange then swap their values and run on; a warp at a
// barrier or at its end waits until all warps are there.
#pragma once
#include <cstdint>

#include "copies.h"
#include "emulation.h"
#include "fibers.h"
#include "settings.h"

namespace vmddpm {
namespace emulation {

constexpr int kLanes = 32, kMostThreads = 1024, kMostWarps = kMostThreads / kLanes;

enum class Stop { nowhere, barrier, exchange, end };

struct Swap {
  char* values;
  int count, size, mask;
};

struct Thread {
  Fiber fiber;
  Stop stop;
  Site site;
  Swap swap;
};

class Scheduler {
 public:
  // order_known: whether ThreadSanitizer is told which accesses barriers and exchanges order.
  void start_block(int threads, Order order, uint64_t block, bool order_known);

  // Called by the host: runs the block until all threads have ended or one has failed.
  void run();

  // Called by a thread: stops it, and returns when it may continue.
  void stop(Stop what, Site site);
  void abandon();

  Thread threads[kMostThreads];
  Copies copies[kMostThreads];
  Fiber host;

 private:
  struct Warp {
    uint8_t order[kLanes];
    int next;        // position in the order of the next lane to run
    int exchanges;
    char met[2];     // clocks of this exchange and the next
  };

  Fiber& next_fiber();
  bool settle(int warp);
  bool settle_block();
  void swap_values(int warp);
  void restart(int warp);
  void choose_warp();
  void compare(int one, int other) const;
  uint32_t random(uint32_t below);

  Order order_;
  bool order_known_;
  uint64_t random_;
  int warps_;
  uint32_t runnable_;  // a bit for each warp
  int warp_;           // the running warp
  int barriers_;
  char met_[2];        // clocks of this barrier and the next
  Warp warp_state_[kMostWarps];
};

extern Scheduler scheduler;

// Ends the launch with the message; does not return. The failing thread is the running or the last stopped one.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Site site, const char* format, ...);

const char* base_name(const char* path);
int64_t shared_bytes();

}  // namespace emulation
}  // namespace vmddpm
