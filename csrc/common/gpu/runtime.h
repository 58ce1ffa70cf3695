// Host code of gpu.h: checks a GPU, prepares kernels and launches them. It needs only the header of the CUDA runtime,
// not nvcc: tests/cuda_runtime compiles it against a simulated runtime.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace vmddpm {
namespace gpu {

// Allows this thread calls that CUDA graph capture forbids and a replay need not repeat, such as loading a kernel.
class OutsideCapture {
 public:
  OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Whether the error is from work that this process queued earlier. CUDA returns such an error from the next call and
// all later ones.
inline bool of_earlier_work(cudaError_t status) {
  switch (static_cast<int>(status)) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case 226:  // cudaErrorContained, from CUDA 12.9 on
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case 721:  // cudaErrorTensorMemoryLeak, from CUDA 12.9 on
      return true;
    default:
      return false;
  }
}

inline std::string text_of(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

[[noreturn]] inline void fail(const std::string& message) {
  cudaGetLastError();  // clears CUDA's last error, which is reported here
  throw std::runtime_error(message);
}

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  if (!of_earlier_work(status)) fail(std::string(what) + ": " + text_of(status));
  fail("work that was queued on this GPU before " + std::string(what) + " failed: " + text_of(status) +
       "; with CUDA_LAUNCH_BLOCKING=1 in the environment the call that fails is the one at fault");
}

// Makes the device current for this thread.
inline void use_device(int index) { check(cudaSetDevice(index), "cudaSetDevice"); }

// Loads the kernel onto the current device once, and allows its blocks all available shared memory.
inline void prepare(const char* name, const void* kernel, bool shares_memory) {
  static std::mutex one_at_a_time;
  static std::set<std::pair<const void*, int>> ready;
  int device = 0;
  check(cudaGetDevice(&device), name);
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (ready.count({kernel, device})) return;
  const OutsideCapture outside;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), name);
  if (shares_memory) {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
    bytes -= static_cast<int>(attributes.sharedSizeBytes);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), name);
  }
  ready.insert({kernel, device});
}

// kernel<<<blocks, threads, shared_bytes, stream>>>(params), without allocations and synchronization.
template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
            Params params) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": the problem needs more than 2^31 blocks");
  const void* function = reinterpret_cast<const void*>(kernel);
  prepare(name, function, shared_bytes > 0);
  void* arguments[] = {&params};
  const cudaError_t status =
      cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), arguments,
                       static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream));
  // With blocking launches the error is from this kernel, as earlier ones were reported.
  const char* waits = status == cudaSuccess ? nullptr : std::getenv("CUDA_LAUNCH_BLOCKING");
  if (waits && std::string(waits) == "1") fail(std::string(name) + ": " + text_of(status));
  check(status, name);
}

// Why the device cannot run the kernel: name and text of CUDA's error, both empty if it can. Makes the device current.
inline std::pair<std::string, std::string> refusal(const void* kernel, int device) {
  cudaError_t status;
  {
    const OutsideCapture outside;
    cudaFuncAttributes attributes{};
    status = cudaSetDevice(device);
    if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, kernel);
  }
  if (status == cudaSuccess) return {};
  cudaGetLastError();
  return {cudaGetErrorName(status), cudaGetErrorString(status)};
}

// The CUDA versions of the driver (0 without one) and of the build, as 1000 * major + 10 * minor.
inline std::pair<int, int> versions() {
  std::pair<int, int> found{0, 0};
  cudaDriverGetVersion(&found.first);
  cudaRuntimeGetVersion(&found.second);
  return found;
}

}  // namespace gpu
}  // namespace vmddpm
