// Programs with one fault each.
#include <cmath>
#include <stdexcept>

#include "selftest.h"

namespace selftest {
namespace {

// Runs a kernel that should make out[i] = in[i] + 1.
bool adds_one(void (*kernel)(Arrays), int blocks = 1) {
  std::vector<float> in(static_cast<size_t>(blocks) * kThreads), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  launch_here(kernel, blocks, Arrays{in.data(), out.data(), static_cast<int>(in.size())});
  for (size_t i = 0; i < in.size(); ++i) {
    if (out[i] != in[i] + 1.0f) return false;
  }
  return true;
}

#define FAULT(name) VMDDPM_KERNEL(kThreads, 1) name(VMDDPM_ARGUMENTS(Arrays) a)

FAULT(missing_barrier) {
  const int next = (thread() + 1) % threads();
  shared_floats()[thread()] = a.in[thread()];
  a.out[next] = shared_floats()[next] + 1.0f;
}

// Right as long as each thread runs after the one before it.
FAULT(missing_barrier_behind) {
  const int previous = thread() == 0 ? 0 : thread() - 1;
  shared_floats()[thread()] = a.in[thread()];
  a.out[previous] = shared_floats()[previous] + 1.0f;
  if (thread() == threads() - 1) a.out[thread()] = a.in[thread()] + 1.0f;
}

// The second round writes while others still read the first.
FAULT(missing_second_barrier) {
  const int other = threads() - 1 - thread();
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    shared_floats()[thread()] = round == 0 ? a.in[thread()] : 1.0f;
    barrier();
    sum += shared_floats()[other];
  }
  a.out[other] = sum;
}

// An exchange orders the lanes of a warp, but not its warps.
FAULT(exchange_for_barrier) {
  const int other = thread() ^ 32;
  shared_floats()[thread()] = a.in[thread()];
  float unused[1] = {0};
  exchange(unused, 1);
  a.out[other] = shared_floats()[other] + 1.0f;
}

FAULT(missing_wait) {
  copy_async<4>(shared_floats() + thread(), a.in + thread(), 4);
  commit_copies();
  a.out[thread()] = shared_floats()[thread()] + 1.0f;
  wait_copies<0>();
}

FAULT(wait_for_older_only) {
  copy_async<4>(shared_floats() + thread(), a.in + thread(), 4);
  commit_copies();
  wait_copies<1>();
  a.out[thread()] = shared_floats()[thread()] + 1.0f;
  wait_copies<0>();
}

FAULT(wait_without_commit) {
  copy_async<4>(shared_floats() + thread(), a.in + thread(), 4);
  wait_copies<0>();
  a.out[thread()] = shared_floats()[thread()] + 1.0f;
  commit_copies();
  wait_copies<0>();
}

// wait_copies is enough for the own copies only.
FAULT(missing_barrier_after_wait) {
  const int next = (thread() + 1) % threads();
  copy_async<4>(shared_floats() + thread(), a.in + thread(), 4);
  commit_copies();
  wait_copies<0>();
  a.out[next] = shared_floats()[next] + 1.0f;
}

FAULT(copy_never_waited_for) {
  copy_async<4>(shared_floats() + thread(), a.in + thread(), 4);
  commit_copies();
  a.out[thread()] = a.in[thread()] + 1.0f;
}

FAULT(copy_misaligned) {
  copy_async<8>(shared_floats() + thread() / 2 * 2, a.in + 1, 8);
  commit_copies();
  wait_copies<0>();
}

FAULT(vector_misaligned) { a.out[thread()] = read_vector(a.in + 4 * (thread() / 4) + 2).at[0]; }

FAULT(copy_outside) {
  copy_async<4>(shared_floats() + thread() + 1, a.in + thread(), 4);
  commit_copies();
  wait_copies<0>();
}

FAULT(copy_source_written) {
  copy_async<4>(shared_floats() + thread(), a.out + thread(), 4);
  commit_copies();
  a.out[thread()] = a.in[thread()] + 1.0f;
  wait_copies<0>();
}

FAULT(copy_target_written) {
  copy_async<4>(shared_floats() + thread(), a.in + thread(), 4);
  commit_copies();
  shared_floats()[thread()] = 1.0f;
  wait_copies<0>();
}

FAULT(copy_beyond_source) {
  if (thread() % 4 == 0) copy_async<16>(shared_floats() + thread(), a.in + thread() + 4, 16);
  commit_copies();
  wait_copies<0>();
}

FAULT(unwritten_shared) {
  if (thread() % 2 == 0) shared_floats()[thread()] = a.in[thread()];
  barrier();
  a.out[thread()] = shared_floats()[thread()] + 1.0f;
}

FAULT(shared_overrun) {
  shared_floats()[thread() + 1] = a.in[thread()];
  barrier();
  a.out[thread()] = a.in[thread()] + 1.0f;
}

FAULT(global_overrun) { a.out[thread() + 1] = a.in[thread()] + 1.0f; }

FAULT(barrier_of_half_a_warp) {
  if (thread() < kWarp / 2) barrier();
  a.out[thread()] = a.in[thread()] + 1.0f;
}

FAULT(barrier_of_one_warp) {
  if (thread() < kWarp) barrier();
  a.out[thread()] = a.in[thread()] + 1.0f;
}

FAULT(barrier_on_both_sides) {
  if (thread() < kWarp) {
    barrier();
  } else {
    barrier();
  }
  a.out[thread()] = a.in[thread()] + 1.0f;
}

FAULT(exchange_of_half_a_warp) {
  float value[1] = {a.in[thread()] + 1.0f};
  if (thread() % 2 == 0) exchange(value, 2);
  a.out[thread() % 2 == 0 ? thread() ^ 2 : thread()] = value[0];
}

FAULT(exchange_with_two_masks) {
  float value[1] = {a.in[thread()] + 1.0f};
  exchange(value, thread() % 32 < 16 ? 1 : 2);
  a.out[thread()] = value[0];
}

FAULT(exchange_against_barrier) {
  float value[1] = {a.in[thread()] + 1.0f};
  if (thread() % 2 == 0) {
    exchange(value, 2);
  } else {
    barrier();
  }
  a.out[thread()] = value[0];
}

// Both blocks write the first block's results.
FAULT(two_blocks_write) { a.out[thread()] = a.in[thread()] + 1.0f; }

// Far from each other, with blocks between them that do nothing wrong, and by one thread only.
FAULT(far_blocks_write) {
  a.out[block() * threads() + thread()] = a.in[block() * threads() + thread()] + 1.0f;
  if (block() == 131 && thread() == 7) a.out[3 * threads() + 40] = a.in[3 * threads() + 40] + 1.0f;
}

FAULT(block_reads_another) {
  const float* from = block() == 1 ? a.out : a.in;
  const int64_t i = block() * threads() + thread();
  a.out[i] = a.in[i] + (from[thread()] - from[thread()]) + 1.0f;
}

FAULT(exception) {
  if (thread() == 3) throw std::runtime_error("thrown by thread 3");
  a.out[thread()] = a.in[thread()] + 1.0f;
}

#undef FAULT

template <void (*kernel)(Arrays), int blocks = 1>
bool run() {
  return adds_one(kernel, blocks);
}

// More threads than ThreadSanitizer keeps apart, of which two have a race, once and late.
VMDDPM_KERNEL(256, 1) two_of_many(VMDDPM_ARGUMENTS(Arrays) a) {
  float* values = shared_floats();
  float sum = 0;
  for (int i = 0; i < a.count; ++i) {
    values[thread()] = 1.0f;
    barrier();
    sum += values[threads() - 1 - thread()];
    float unused[1] = {sum};
    exchange(unused, 1);
    barrier();
  }
  if (thread() == 3) values[200] = 1.0f;
  if (block() == 1 && thread() == 203) sum += values[200];
  a.out[block() * threads() + thread()] = sum;
}

bool two_of_many_threads() {
  std::vector<float> out(2 * 256);
  launch("two_of_many", &two_of_many, 2, 256, 256 * 4, nullptr, Arrays{nullptr, out.data(), 5});
  return true;
}

bool odd_block() {
  launch("odd_block", &missing_barrier, 1, 48, 1024, nullptr, Arrays{});
  return true;
}

bool too_much_shared() {
  launch("too_much_shared", &missing_barrier, 1, 64, 227 * 1024 + 16, nullptr, Arrays{});
  return true;
}

}  // namespace

#define CASE(name, ...) {#name, &run<name, ##__VA_ARGS__>}

const std::vector<Case> faults = {
    CASE(missing_barrier),         CASE(missing_barrier_behind),  CASE(missing_second_barrier),
    CASE(exchange_for_barrier),    CASE(missing_wait),            CASE(wait_for_older_only),
    CASE(wait_without_commit),     CASE(missing_barrier_after_wait), CASE(copy_never_waited_for),
    CASE(copy_misaligned),         CASE(vector_misaligned),       CASE(copy_outside),            CASE(copy_source_written),
    CASE(copy_target_written),     CASE(copy_beyond_source),      CASE(unwritten_shared),
    CASE(shared_overrun),          CASE(global_overrun),          CASE(barrier_of_half_a_warp),
    CASE(barrier_of_one_warp),     CASE(barrier_on_both_sides),   CASE(exchange_of_half_a_warp),
    CASE(exchange_with_two_masks), CASE(exchange_against_barrier), CASE(two_blocks_write, 2),
    CASE(far_blocks_write, 140),   CASE(block_reads_another, 2),  CASE(exception),
    {"two_of_many_threads", &two_of_many_threads},
    {"odd_block", &odd_block},     {"too_much_shared", &too_much_shared},
};

#undef CASE

}  // namespace selftest
