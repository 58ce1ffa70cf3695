#pragma once
#include <cstdint>

namespace vmddpm {

// What a plan for a GPU depends on beside the sizes of the problem.
struct GpuLimits {
  int64_t multiprocessors;
  int64_t shared_bytes;  // of one block
};

}  // namespace vmddpm
