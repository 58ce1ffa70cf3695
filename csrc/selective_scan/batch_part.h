// Splits a scan into launches over a few neighbouring images each, so that workspaces need room for one launch only.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "cuda.h"

namespace vmddpm {
namespace gpu {

inline void advance(View& view, int64_t images) {
  if (view.data) view.data = static_cast<char*>(view.data) + images * view.stride[0] * size_of(view.dtype);
}

template <typename T>
void advance(T*& data, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  if (data) data = static_cast<Byte*>(data) + bytes;
}

inline ScanParams part_of(ScanParams p, const GpuScanPlan& plan, int64_t first, int64_t count) {
  const int64_t sequences = first * p.routes, states = sequences * p.channels * p.states * (p.wide ? 8 : 4);
  p.batch = count;
  for (View* view : {&p.x, &p.delta, &p.B, &p.C, &p.y}) advance(*view, first);
  advance(p.initial_state, states);
  advance(p.last_state, states);
  advance(p.checkpoints, states * plan.chunks);
  return p;
}

inline ScanGradParams part_of(ScanGradParams g, const GpuScanPlan& plan, const GpuScanWorkspace& work, int64_t first,
                              int64_t count) {
  const ScanParams p = g.forward;
  const int64_t accumulate = p.wide ? 8 : 4, sequences = first * p.routes;
  const int64_t matrix = sequences * p.length * p.states, parameter = sequences * plan.segments * p.channels * accumulate;
  g.forward = part_of(p, plan, first, count);
  for (View* view : {&g.dy, &g.dx, &g.ddelta}) advance(*view, first);
  advance(g.dlast_state, sequences * p.channels * p.states * accumulate);
  advance(g.dinitial_state, sequences * p.channels * p.states * accumulate);
  advance(g.dB, matrix * (work.matrices ? size_of(work.dB) : accumulate));
  advance(g.dC, matrix * (work.matrices ? size_of(work.dC) : accumulate));
  advance(g.dA, parameter * p.states);
  advance(g.dD, parameter);
  advance(g.ddelta_bias, parameter);
  return g;
}

// Calls run(first, count) for each part of the batch.
template <typename Run>
void for_parts(int64_t batch, const GpuScanPlan& plan, Run run) {
  for (int64_t first = 0; first < batch; first += plan.part) run(first, batch - first < plan.part ? batch - first : plan.part);
}

}  // namespace gpu
}  // namespace vmddpm
