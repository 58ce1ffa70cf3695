// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; dispatch.cpp picks one at run time.
#include "cpu.h"

#include <atomic>
#include <vector>

#include "../common/pages.h"
#include "../common/workspace.h"
#include "cpu_backward.h"
#include "cpu_forward.h"

VMDDPM_DECLARE_SCAN(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {

namespace {

// With less than about ten microseconds of work each, waking another thread costs more than it saves.
constexpr int64_t kForwardStates = 48 << 10, kBackwardStates = 24 << 10;  // advanced by a thread in that time

int64_t useful_threads(const ScanParams& p, int64_t states_a_thread) {
  const int64_t threads = p.batch * p.routes * p.length * p.channels * (p.states + 1) / states_a_thread;
  return threads < 1 ? 1 : threads;
}

}  // namespace

ScanPlan scan_plan(const ScanParams& p) {
  // Enough groups for the cores worth waking, but no more: each adds to dB and dC separately.
  constexpr int64_t kMostGroups = 16, kMostBlocks = 8;
  // Enough pieces of the batch, but no more: each leaves a partial sum of dA.
  constexpr int64_t kLeastPieces = 16, kLeastTasks = 64;
  ScanPlan plan;
  plan.lanes = p.wide ? kLanes<double> : kLanes<float>;
  plan.blocks = (p.channels + plan.lanes - 1) / plan.lanes;
  plan.chunk = p.states > kLeastChunk ? p.states : kLeastChunk;
  if (plan.chunk > p.length) plan.chunk = p.length > 0 ? p.length : 1;
  plan.chunks = (p.length + plan.chunk - 1) / plan.chunk;
  plan.checkpoints = plan.chunks > 0 ? plan.chunks - 1 : 0;
  const int64_t sequences = p.batch * (p.sum_routes ? 1 : p.routes);
  const int64_t useful = useful_threads(p, kBackwardStates);
  const int64_t groups = useful == 1 ? 1 : minimum(kMostGroups, 2 * useful);
  const int64_t together = (sequences * plan.blocks + groups - 1) / groups;
  plan.blocks_per_group = together < 1 ? 1 : together < kMostBlocks ? together : kMostBlocks;
  plan.groups = (plan.blocks + plan.blocks_per_group - 1) / plan.blocks_per_group;
  const int64_t others = plan.groups * (p.sum_routes ? 1 : p.routes);
  const int64_t wanted = others < 1 ? 1 : (kLeastTasks + others - 1) / others;
  plan.pieces = minimum(p.batch, wanted < kLeastPieces ? kLeastPieces : wanted);
  return plan;
}

namespace {

thread_local Workspace workspace;

int threads_of(const ScanParams& p, int64_t states_a_thread) {
  return static_cast<int>(minimum(useful_threads(p, states_a_thread), p.threads));
}

// Calls run(task, buffers) for every task on up to `threads` threads, each with its own buffers. Tasks start in index
// order, so a task may wait for earlier ones.
template <typename Buffers, typename Run>
void for_each_task(const ScanParams& p, const ScanPlan& plan, const Tasks& tasks, int threads, Run run) {
  if (tasks.count == 0) return;
  [[maybe_unused]] const int team = static_cast<int>(tasks.count < threads ? tasks.count : threads);
  Arena count;
  Buffers(count, p, plan, tasks);
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(team) if (team > 1)
  {
    Arena arena(workspace.reserve<char>(count.bytes()));
    const Buffers buffers(arena, p, plan, tasks);
    for (int64_t index; (index = next.fetch_add(1)) < tasks.count;) run(task_at(p, plan, tasks, index), buffers);
  }
}

// For a tensor (B, K, L, D) that will be written whole.
void prefer_large_pages_for(const View& view, const ScanParams& p) {
  const int64_t last = (p.batch - 1) * view.stride[0] + (p.routes - 1) * view.stride[1] +
                       (p.length - 1) * view.stride[2] + (p.channels - 1) * view.stride[3];
  prefer_large_pages(view.data, (last + 1) * size_of(view.dtype));
}

template <typename T, Rule kRule>
void forward(const ScanParams& p) {
  const ScanPlan plan = scan_plan(p);
  prefer_large_pages_for(p.y, p);
  if (p.checkpoints) {
    const int64_t states = p.batch * p.routes * plan.checkpoints * plan.blocks * plan.lanes * p.states;
    prefer_large_pages(p.checkpoints, states * static_cast<int64_t>(sizeof(T)));
  }
  const int threads = threads_of(p, kForwardStates);
  const Tasks tasks = tasks_of(p, plan, threads);
  for_each_task<ForwardBuffers<T>>(p, plan, tasks, threads, [&](const Task& task, const ForwardBuffers<T>& buffers) {
    forward_task<T, kRule>(p, plan, task, buffers);
  });
}

template <typename T, Rule kRule>
void backward(const ScanGradParams& g) {
  const ScanParams& p = g.forward;
  const ScanPlan plan = scan_plan(p);
  const int threads = threads_of(p, kBackwardStates);
  const Tasks tasks = tasks_of(p, plan, threads);
  const int64_t count = p.batch * p.routes * p.length * p.states;
  prefer_large_pages_for(g.dx, p);
  if (!g.only_input) {
    if (p.rank == 0) prefer_large_pages_for(g.ddelta, p);
    for (void* gradient : {g.dB, g.dC}) prefer_large_pages(gradient, count * static_cast<int64_t>(sizeof(T)));
  }
  T* const dfactor = p.rank > 0 ? static_cast<T*>(g.ddelta.data) : nullptr;
  const bool shared = tasks.splits > 1 && !g.only_input;  // no task has all groups of a sequence
  std::vector<Turns> turns(static_cast<size_t>(shared ? tasks.count : 0));
  for_each_task<BackwardBuffers<T>>(p, plan, tasks, threads, [&](const Task& task, const BackwardBuffers<T>& buffers) {
    Turns* const here = shared ? &turns[static_cast<size_t>(task.index)] : nullptr;
    Turns* const before = shared && task.group_begin > 0 ? here - 1 : nullptr;
    const Sums<T> sums{static_cast<T*>(g.dB), static_cast<T*>(g.dC), dfactor, before, here};
    backward_task<T, kRule>(g, plan, task, sums, buffers);
  });
  if (plan.blocks > 0 || g.only_input || count == 0) return;
  for (void* sum : {g.dB, g.dC}) std::memset(sum, 0, static_cast<size_t>(count) * sizeof(T));  // a sum over no channels
  if (dfactor) std::memset(dfactor, 0, static_cast<size_t>(count / p.states * p.rank) * sizeof(T));
}

template <typename T>
void forward(const ScanParams& p) {
  switch (rule_of<T>(p)) {
    case Rule::decaying: return forward<T, Rule::decaying>(p);
    case Rule::growing: return forward<T, Rule::growing>(p);
    case Rule::zero_order_hold: return forward<T, Rule::zero_order_hold>(p);
  }
}

template <typename T>
void backward(const ScanGradParams& g) {
  switch (rule_of<T>(g.forward)) {
    case Rule::decaying: return backward<T, Rule::decaying>(g);
    case Rule::growing: return backward<T, Rule::growing>(g);
    case Rule::zero_order_hold: return backward<T, Rule::zero_order_hold>(g);
  }
}

}  // namespace

void scan_forward(const ScanParams& p) { return p.wide ? forward<double>(p) : forward<float>(p); }

void scan_backward(const ScanGradParams& g) { return g.forward.wide ? backward<double>(g) : backward<float>(g); }

}  // namespace VMDDPM_ISA
}  // namespace vmddpm
