// A simulated CUDA runtime with the functions that csrc/common/gpu/runtime.h calls. It counts calls and refuses what a
// GPU refuses. Constants have CUDA's values.
#pragma once
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <tuple>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNvlinkUncorrectable = 220,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
constexpr int cudaSharedmemCarveoutMaxShared = 100;
using cudaStream_t = struct CUstream_st*;
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
struct dim3 {
  unsigned x;
  explicit dim3(unsigned n) : x(n) {}
};

struct Simulated {
  int devices = 2, optin_bytes = 232448, static_bytes = 1024, driver = 13000, built = 13000;
  int device = 0;
  bool capturing = false, capture_broken = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cudaError_t loading = cudaSuccess;    // result of loading a kernel
  cudaError_t every_call = cudaSuccess; // as with a driver too old for this CUDA
  cudaError_t pending = cudaSuccess;    // error of work queued before
  cudaError_t last = cudaSuccess;
  std::set<std::pair<const void*, int>> loaded;
  std::map<std::tuple<const void*, int, cudaFuncAttribute>, std::pair<int, int>> attributes;  // (times set, value)
  int launches = 0, queries = 0;
};
inline Simulated simulated;

inline cudaError_t told(cudaError_t status) {
  if (status == cudaSuccess) status = simulated.every_call;
  if (status == cudaSuccess) status = simulated.pending;
  if (status != cudaSuccess) simulated.last = status;
  return status;
}

inline cudaError_t load(const void* kernel) {
  if (simulated.every_call != cudaSuccess) return simulated.every_call;
  if (simulated.loaded.count({kernel, simulated.device})) return cudaSuccess;
  if (simulated.capturing && simulated.mode != cudaStreamCaptureModeRelaxed) {
    simulated.capture_broken = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (simulated.loading == cudaSuccess) simulated.loaded.insert({kernel, simulated.device});
  return simulated.loading;
}

inline const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorUnsupportedPtxVersion: return "cudaErrorUnsupportedPtxVersion";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    default: return "another";
  }
}
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorIllegalAddress ? "an illegal memory access was encountered" : "words";
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t last = simulated.last;
  simulated.last = simulated.pending;  // a sticky error
  return last;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(simulated.mode, *mode);
  return told(cudaSuccess);
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= simulated.devices) return told(cudaErrorInvalidDevice);
  simulated.device = device;
  return told(cudaSuccess);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = simulated.device;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = simulated.driver;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = simulated.built;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = simulated.optin_bytes;
  return told(cudaSuccess);
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  ++simulated.queries;
  attributes->sharedSizeBytes = static_cast<size_t>(simulated.static_bytes);
  return told(load(kernel));
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t status = load(kernel)) return told(status);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > simulated.optin_bytes - simulated.static_bytes) {
    return told(cudaErrorInvalidValue);
  }
  auto& [times, last] = simulated.attributes[{kernel, simulated.device, attribute}];
  ++times;
  last = value;
  return told(cudaSuccess);
}
inline cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t shared_bytes, cudaStream_t) {
  if (const cudaError_t status = load(kernel)) return told(status);
  const auto found = simulated.attributes.find({kernel, simulated.device, cudaFuncAttributeMaxDynamicSharedMemorySize});
  const int most = found == simulated.attributes.end() ? 49152 - simulated.static_bytes : found->second.second;
  if (static_cast<int>(shared_bytes) > most) return told(cudaErrorInvalidValue);
  ++simulated.launches;
  return told(cudaSuccess);
}
