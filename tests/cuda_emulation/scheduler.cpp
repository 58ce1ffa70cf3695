#include "scheduler.h"

#include <cstdio>

#include "sanitizers.h"

namespace vmddpm {
namespace emulation {

Scheduler scheduler;
uint64_t stretch = 0;

namespace {

// What a thread is doing, for a message.
struct Doing {
  explicit Doing(const Thread& thread) {
    const char* file = thread.site.file ? base_name(thread.site.file) : "";
    if (thread.stop == Stop::end) {
      std::snprintf(text, sizeof text, "has ended");
    } else if (thread.stop == Stop::barrier) {
      std::snprintf(text, sizeof text, "waits at the barrier at %s:%d", file, thread.site.line);
    } else {
      std::snprintf(text, sizeof text, "is at the exchange of %d values of %d bytes with mask %d at %s:%d",
                    thread.swap.count, thread.swap.size, thread.swap.mask, file, thread.site.line);
    }
  }
  char text[256];
};

bool same_site(Site a, Site b) { return a.line == b.line && (a.file == b.file || !__builtin_strcmp(a.file, b.file)); }

template <typename Word>
void swap_words(char* a, char* b, int64_t& done, int64_t bytes) {
  for (; done + static_cast<int64_t>(sizeof(Word)) <= bytes; done += sizeof(Word)) {
    Word from_a, from_b;
    __builtin_memcpy(&from_a, a + done, sizeof(Word));
    __builtin_memcpy(&from_b, b + done, sizeof(Word));
    __builtin_memcpy(a + done, &from_b, sizeof(Word));
    __builtin_memcpy(b + done, &from_a, sizeof(Word));
  }
}

}  // namespace

void Scheduler::start_block(int threads_of_block, Order order, uint64_t block, bool order_known) {
  order_ = order;
  order_known_ = order_known;
  random_ = (order.seed + 1) * 0x9e3779b97f4a7c15ull + block;
  warps_ = threads_of_block / kLanes;
  runnable_ = warps_ == kMostWarps ? ~0u : (1u << warps_) - 1;
  barriers_ = 0;
  for (int i = 0; i < threads_of_block; ++i) {
    threads[i].stop = Stop::nowhere;
    copies[i].clear();
  }
  for (int w = 0; w < warps_; ++w) {
    warp_state_[w].exchanges = 0;
    restart(w);
  }
  choose_warp();
  ++stretch;
}

void Scheduler::run() {
  Fiber& first = next_fiber();
  switch_fiber(host, first);
}

void Scheduler::stop(Stop what, Site site) {
  const int index = here.thread;
  Thread& self = threads[index];
  self.stop = what;
  self.site = site;
  Warp& warp = warp_state_[index / kLanes];
  // A thread that goes on may reach the next meeting before others have left this one, so there are two clocks in turn.
  char* met = nullptr;
  if (order_known_ && what == Stop::barrier) met = &met_[barriers_ % 2];
  if (order_known_ && what == Stop::exchange) met = &warp.met[warp.exchanges % 2];
  if (met) release(met);
  Fiber& next = next_fiber();
  if (&next != &self.fiber) switch_fiber(self.fiber, next, what == Stop::end);
  if (met) acquire(met);
}

void Scheduler::abandon() { switch_fiber(threads[here.thread].fiber, host); }

// The fiber to run now that the running one has stopped: a lane of the same warp, or of another, or the host.
Fiber& Scheduler::next_fiber() {
  if (warp_state_[warp_].next == kLanes) {
    const bool goes_on = settle(warp_) || runnable_ != 0 || settle_block();
    if (!goes_on) return host;
    choose_warp();
    ++stretch;
  }
  Warp& warp = warp_state_[warp_];
  here.thread = warp_ * kLanes + warp.order[warp.next++];
  return threads[here.thread].fiber;
}

// All lanes of the warp have stopped. Returns whether they run on.
bool Scheduler::settle(int warp) {
  const int first = warp * kLanes;
  for (int i = 1; i < kLanes; ++i) compare(first, first + i);
  if (threads[first].stop == Stop::exchange) {
    swap_values(warp);
    ++warp_state_[warp].exchanges;
    restart(warp);
    return true;
  }
  runnable_ &= ~(1u << warp);
  return false;
}

// All warps rest. Returns whether they run on.
bool Scheduler::settle_block() {
  for (int w = 1; w < warps_; ++w) compare(0, w * kLanes);
  if (threads[0].stop == Stop::end) return false;
  ++barriers_;
  for (int w = 0; w < warps_; ++w) {
    runnable_ |= 1u << w;
    restart(w);
  }
  return true;
}

void Scheduler::compare(int one, int other) const {
  const Thread &a = threads[one], &b = threads[other];
  if (a.stop == b.stop) {
    if (a.stop == Stop::end) return;
    const bool alike = a.stop != Stop::exchange ||
                       (a.swap.count == b.swap.count && a.swap.size == b.swap.size && a.swap.mask == b.swap.mask);
    if (alike && same_site(a.site, b.site)) return;
  }
  const char* what = a.stop == b.stop ? (a.stop == Stop::exchange ? "lanes of one warp are at different exchanges"
                                                                  : "deadlock: threads wait at different barriers")
                                      : "deadlock: threads wait for others that never come";
  fail({}, "%s: thread %d %s, but thread %d %s", what, one, Doing(a).text, other, Doing(b).text);
}

void Scheduler::swap_values(int warp) {
  const Thread* lanes = threads + warp * kLanes;
  const int mask = lanes[0].swap.mask;
  const int64_t bytes = static_cast<int64_t>(lanes[0].swap.count) * lanes[0].swap.size;
  for (int i = 0; i < kLanes; ++i) {
    const int j = i ^ mask;
    if (j <= i) continue;
    int64_t done = 0;
    swap_words<uint64_t>(lanes[i].swap.values, lanes[j].swap.values, done, bytes);
    swap_words<uint16_t>(lanes[i].swap.values, lanes[j].swap.values, done, bytes);
  }
}

void Scheduler::restart(int warp) {
  Warp& w = warp_state_[warp];
  w.next = 0;
  const bool reverse = order_.kind == Order::kReverse;
  for (int i = 0; i < kLanes; ++i) w.order[i] = static_cast<uint8_t>(reverse ? kLanes - 1 - i : i);
  if (order_.kind != Order::kRandom) return;
  for (int i = kLanes - 1; i > 0; --i) {
    const uint32_t j = random(static_cast<uint32_t>(i) + 1);
    const uint8_t other = w.order[j];
    w.order[j] = w.order[i];
    w.order[i] = other;
  }
}

void Scheduler::choose_warp() {
  const int lowest = __builtin_ctz(runnable_), highest = 31 - __builtin_clz(runnable_);
  if (order_.kind == Order::kForward) {
    warp_ = lowest;
  } else if (order_.kind == Order::kReverse) {
    warp_ = highest;
  } else {
    do {
      warp_ = static_cast<int>(random(static_cast<uint32_t>(warps_)));
    } while (!(runnable_ >> warp_ & 1));
  }
}

// splitmix64
uint32_t Scheduler::random(uint32_t below) {
  uint64_t z = random_ += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((z >> 32) * below >> 32);
}

}  // namespace emulation
}  // namespace vmddpm
