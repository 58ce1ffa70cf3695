// A launch: its blocks one after another, and what ThreadSanitizer is told of their order.
//
// ThreadSanitizer keeps some 250 threads apart, and a grid has more. So it looks for one kind of race in one run.
// VMDDPM_EMULATION_RACES=threads: each CUDA thread of a block is a thread to it, ordered by barriers and exchanges, and
// blocks are ordered. =blocks: each block is a thread to it, and nothing orders them.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>

#include "counts.h"
#include "sanitizers.h"
#include "scheduler.h"

namespace vmddpm {
namespace emulation {

Position here;
Substitute substitute = nullptr;

namespace {

struct Launch {
  const char* name;
  void (*run)(const void*);
  const void* arguments;
  int threads;
  int64_t shared_bytes;
  Order order;
  bool between_blocks;  // is where races are looked for
  void* host_identity;
};

std::mutex one_at_a_time;
Launch now;
bool failed;
char failure[1024];
char started, ended;  // ThreadSanitizer's clocks
char* stacks[kMostThreads];

// Whom ThreadSanitizer takes threads, or blocks, for.
constexpr int kIdentities = 200;
void* identities[kIdentities];

// The identity of a thread or of a block. Two that share one pass for ordered, as where there are more than kIdentities
// some must. They are never neighbours, nor always at the same distance; nor, of threads, the same two in every block.
void* identity_of(int64_t index, int64_t salt) {
  if (!kThreadSanitizer) return nullptr;
  const uint64_t turn = static_cast<uint64_t>(index / kIdentities) * (2 * static_cast<uint64_t>(salt) + 1);
  void*& identity = identities[(static_cast<uint64_t>(index) + (turn * 0x9e3779b97f4a7c15ull >> 40)) % kIdentities];
  if (!identity) identity = create_identity();
  return identity;
}

// For reports.
void name_threads(int64_t block) {
  char name[64];
  for (int i = 0; i < now.threads && kThreadSanitizer; ++i) {
    std::snprintf(name, sizeof name, "block %lld, thread %d%s", static_cast<long long>(block), i,
                  now.threads > kIdentities ? " or another" : "");
    name_identity(scheduler.threads[i].fiber.identity, name);
  }
}

void name_block(void* identity, int64_t block) {
  char name[64];
  std::snprintf(name, sizeof name, "block %lld", static_cast<long long>(block));
  name_identity(identity, name);
}

void run_thread() {
  entered();
  if (!now.between_blocks) acquire(&started);
  char thrown[256] = "";
  try {
    now.run(now.arguments);
  } catch (const std::exception& error) {
    std::snprintf(thrown, sizeof thrown, "%s", error.what());
  }
  if (thrown[0]) fail({}, "an exception: %s", thrown);
  const Copies& copies = scheduler.copies[here.thread];
  if (!copies.empty()) fail(copies.oldest(), "a thread ends without having waited for the copy that it started here");
  if (!now.between_blocks) release(&ended);
  scheduler.stop(Stop::end, {});
}

// A stack that another identity has used would be a race; malloc makes ThreadSanitizer forget what was there.
bool own_stacks() { return kThreadSanitizer && now.between_blocks; }

// What was never finished cannot be used again.
void forget_identities() {
  for (void*& identity : identities) {
    if (identity) destroy_identity(identity);
    identity = nullptr;
  }
}

void run_block(int64_t block) {
  void* identity = now.between_blocks ? identity_of(block, 0) : now.host_identity;
  if (now.between_blocks) name_block(identity, block);
  take_identity(identity);
  if (now.between_blocks) acquire(&started);
  char* shared = static_cast<char*>(std::malloc(static_cast<size_t>(now.shared_bytes)));
  std::memset(shared, 0xff, static_cast<size_t>(now.shared_bytes));
  for (int i = 0; i < now.threads; ++i) {
    if (!stacks[i]) stacks[i] = new_stack();
    Fiber& fiber = scheduler.threads[i].fiber;
    prepare(fiber, own_stacks() ? static_cast<char*>(std::malloc(kStackBytes)) : stacks[i], i, run_thread);
    fiber.identity = now.between_blocks ? identity : identity_of(i, block);
  }
  if (!now.between_blocks) name_threads(block);
  scheduler.host.identity = identity;
  here = {0, now.threads, block, shared};
  scheduler.start_block(now.threads, now.order, static_cast<uint64_t>(block), !now.between_blocks);
  if (!now.between_blocks) release(&started);

  scheduler.run();

  // Threads that stay where they are have not said that they end; nor has the one that failed, whatever it had said.
  for (int i = 0; i < now.threads && failed && !now.between_blocks; ++i) {
    take_identity(scheduler.threads[i].fiber.identity);
    release(&ended);
    take_identity(identity);
  }
  if (counts.on()) counts.end_block();
  if (!now.between_blocks) acquire(&ended);
  for (int i = 0; i < now.threads && own_stacks(); ++i) std::free(scheduler.threads[i].fiber.stack);
  std::free(shared);
  if (now.between_blocks) release(&ended);
  take_identity(now.host_identity);
}

void refuse(const char* name, const std::string& why) { throw std::runtime_error(std::string(name) + ": " + why); }

}  // namespace

int64_t shared_bytes() { return now.shared_bytes; }

void free_stacks() {
  for (char*& stack : stacks) {
    if (stack) free_stack(stack);
    stack = nullptr;
  }
}

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void fail(Site site, const char* format, ...) {
  failed = true;
  int used = std::snprintf(failure, sizeof failure, "%s: block %lld: ", now.name, static_cast<long long>(here.block));
  if (site.file) {
    used += std::snprintf(failure + used, sizeof failure - static_cast<size_t>(used), "thread %d at %s:%d: ",
                          here.thread, base_name(site.file), site.line);
  }
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(failure + used, sizeof failure - static_cast<size_t>(used), format, arguments);
  va_end(arguments);
  scheduler.abandon();
  __builtin_unreachable();
}

void launch(const char* name, void (*run)(const void*), const void* arguments, int64_t blocks, int threads,
            int64_t shared_bytes) {
  if (blocks == 0) return;
  if (blocks < 0 || blocks > INT32_MAX) refuse(name, std::to_string(blocks) + " blocks: 0 to 2^31 - 1 are possible");
  if (threads <= 0 || threads > kMostThreads || threads % kLanes != 0) {
    refuse(name, "a block of " + std::to_string(threads) + " threads: multiples of 32 up to 1024 are possible");
  }
  const int64_t limit = number_setting("VMDDPM_EMULATION_SHARED_LIMIT", 227 * 1024);
  if (shared_bytes < 0 || shared_bytes > limit) {
    refuse(name, std::to_string(shared_bytes) + " bytes of shared memory: a block may have " + std::to_string(limit));
  }
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  now = {name,         run,             arguments,                      threads,
         shared_bytes, order_setting(), races_between_blocks_setting(), current_identity()};
  failed = false;
  counts.start(setting("VMDDPM_EMULATION_COUNTS"));
  release(&started);
  for (int64_t block = 0; block < blocks && !failed; ++block) run_block(block);
  acquire(&ended);
  if (counts.on() && !failed) counts.finish(name, blocks);
  if (!failed) return;
  forget_identities();
  throw std::runtime_error(failure);
}

void barrier(Site site) { scheduler.stop(Stop::barrier, site); }

void exchange(void* values, int count, int size, int mask, Site site) {
  if (mask < 0 || mask >= kLanes) fail(site, "an exchange with mask %d", mask);
  scheduler.threads[here.thread].swap = {static_cast<char*>(values), count, size, mask};
  scheduler.stop(Stop::exchange, site);
}

void count(Access kind, const void* address, int bytes, Site site) {
  if (bytes > 0 && reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) != 0) {
    fail(site, "an access of %d bytes at %p, which is no multiple of it", bytes, address);
  }
  if (counts.on()) counts.note(kind, address, bytes, site, here.thread, here.shared);
}

void start_copy(void* to, const void* from, int bytes, int valid, Site site) {
  scheduler.copies[here.thread].start(to, from, bytes, valid, site);
}

void commit_copies() { scheduler.copies[here.thread].commit(); }

void wait_copies(int pending, Site site) { scheduler.copies[here.thread].wait(pending, site); }

}  // namespace emulation
}  // namespace vmddpm

extern "C" __attribute__((visibility("default"))) void vmddpm_emulation_substitute(
    vmddpm::emulation::Substitute substitute) {
  vmddpm::emulation::substitute = substitute;
}
