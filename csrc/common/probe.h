// What CUDA says of a GPU and the kernels of this build.
#pragma once
#include <string>

namespace vmddpm {

struct GpuProbe {
  std::string error, message;  // name and words of CUDA's error where a kernel cannot be loaded; empty if it can
  int driver;                  // the CUDA version that the driver knows, 12040 of 12.4; 0 without a driver
  int built;                   // and that of this build
};

// Loads one kernel onto the device, which becomes the current one. All kernels are built for the same GPUs.
GpuProbe cuda_probe(int device);

}  // namespace vmddpm
