// Compiled once per instruction set, with VMDDPM_ISA naming the namespace; common/dispatch.cpp picks one at run time.
#include "cpu.h"

#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu_backward.h"
#include "cpu_forward.h"

VMDDPM_DECLARE_SCAN(VMDDPM_ISA)

namespace vmddpm {
namespace VMDDPM_ISA {

ScanPlan scan_plan(const ScanParams& p) {
  // Enough tasks for many cores before blocks are put together to share the B and C they stage.
  constexpr int64_t kTasks = 4, kMostBlocks = 8, kChunk = 32;
  ScanPlan plan;
  plan.lanes = p.wide ? kLanes<double> : kLanes<float>;
  plan.blocks = (p.channels + plan.lanes - 1) / plan.lanes;
  // A checkpoint holds N states and stands for `chunk` steps: a chunk of at least N steps keeps memory free of N.
  plan.chunk = p.states > kChunk ? p.states : kChunk;
  if (plan.chunk > p.length) plan.chunk = p.length > 0 ? p.length : 1;
  plan.chunks = (p.length + plan.chunk - 1) / plan.chunk;
  const int64_t sequences = p.batch * (p.shared ? 1 : p.routes);
  int64_t together = sequences * plan.blocks / kTasks;
  together = together < 1 ? 1 : together;
  plan.blocks_per_group = together < kMostBlocks ? together : kMostBlocks;
  plan.groups = (plan.blocks + plan.blocks_per_group - 1) / plan.blocks_per_group;
  return plan;
}

namespace {

// One aligned block of memory for a call, freed with it.
struct Memory {
  static constexpr std::align_val_t kAlignment{64};
  char* start;
  explicit Memory(int64_t bytes) : start(static_cast<char*>(::operator new(static_cast<size_t>(bytes), kAlignment))) {}
  ~Memory() { ::operator delete(start, kAlignment); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Calls run(task, buffers) for every task of the plan on up to p.threads threads, each with buffers of its own.
template <typename Buffers, typename Run>
void for_each_task(const ScanParams& p, const ScanPlan& plan, Run run) {
  const int64_t tasks = task_count(p, plan);
  if (tasks == 0) return;
  Arena count;
  Buffers(count, p, plan);
  const int threads = static_cast<int>(tasks < p.threads ? tasks : p.threads);
  const Memory memory(count.bytes() * threads);
#pragma omp parallel num_threads(threads)
  {
    Arena arena(memory.start + count.bytes() * thread_index());
    const Buffers buffers(arena, p, plan);
#pragma omp for schedule(dynamic, 1)
    for (int64_t index = 0; index < tasks; ++index) run(task_at(p, plan, index), buffers);
  }
}

template <typename T, Rule kRule>
void forward(const ScanParams& p) {
  const ScanPlan plan = scan_plan(p);
  for_each_task<ForwardBuffers<T>>(p, plan, [&](const Task& task, const ForwardBuffers<T>& buffers) {
    forward_task<T, kRule>(p, plan, task, buffers);
  });
}

template <typename T, Rule kRule>
void backward(const ScanGradParams& g) {
  const ScanPlan plan = scan_plan(g.forward);
  for_each_task<BackwardBuffers<T>>(g.forward, plan, [&](const Task& task, const BackwardBuffers<T>& buffers) {
    backward_task<T, kRule>(g, plan, task, buffers);
  });
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
