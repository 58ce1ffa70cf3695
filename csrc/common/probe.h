// Whether a GPU can run the kernels of this build.
#pragma once
#include <string>

namespace vmddpm {

struct GpuProbe {
  std::string error, message;  // name and text of CUDA's error if a kernel cannot be loaded; else empty
  int driver;                  // the CUDA version of the driver, 12040 for 12.4; 0 without a driver
  int built;                   // the CUDA version of this build
};

// Loads one kernel onto the device and makes it current. One kernel suffices: all are built for the same GPUs.
GpuProbe cuda_probe(int device);

}  // namespace vmddpm
