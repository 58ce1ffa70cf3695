// Equal tasks for several threads, and each thread's memory.
#pragma once
#include "../common/workspace.h"
#include "cpu_walk.h"

namespace {

// Memory for a panel, for a strip or some steps, for a block of planes, and for a call's table, which other threads
// read.
thread_local Workspace panel_workspace, strip_workspace, block_workspace, table_workspace;

// Calls run(task) for each task below `count`; starts no threads if one suffices.
template <typename Run>
void for_each_task(int64_t count, int threads, Run run) {
  if (count < threads) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (int64_t task = 0; task < count; ++task) run(task);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < count; ++task) run(task);
}

// The range [first, end) of part `index` if n items are divided into `parts` parts of about equal size.
struct Part {
  int64_t first, end;
  Part(int64_t n, int64_t parts, int64_t index) : first(n * index / parts), end(n * (index + 1) / parts) {}
  int64_t count() const { return end - first; }
};

// A Part made of whole units, for example cache lines.
struct UnitPart : Part {
  UnitPart(int64_t n, int64_t unit, int64_t parts, int64_t index) : Part((n + unit - 1) / unit, parts, index) {
    first *= unit;
    end = minimum(end * unit, n);
  }
};

}  // namespace
