#pragma once
#include <cstdint>

namespace vmddpm {

// The properties of a GPU that plans depend on.
struct GpuLimits {
  int64_t multiprocessors;
  int64_t shared_bytes;  // the most of one block
};

}  // namespace vmddpm
