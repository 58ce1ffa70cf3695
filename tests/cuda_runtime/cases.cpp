// `cases NAME` runs one case of csrc/common/gpu/runtime.h on the simulated runtime, and says what does not hold.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

using namespace vmddpm::gpu;

namespace {

int failures = 0;

#define HOLDS(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      std::printf("line %d: %s does not hold\n", __LINE__, #condition); \
      ++failures;                                                     \
    }                                                                 \
  } while (false)

struct Numbers {
  int n;
};
void scan(Numbers) {}
void fold(Numbers numbers) { std::printf("%d", numbers.n); }  // another kernel than scan, for the linker too

const void* address(void (*kernel)(Numbers)) { return reinterpret_cast<const void*>(kernel); }

void run(void (*kernel)(Numbers), int64_t shared_bytes) { launch("scan", kernel, 7, 128, shared_bytes, nullptr, Numbers{1}); }

std::string thrown(void (*kernel)(Numbers), int64_t shared_bytes) {
  try {
    run(kernel, shared_bytes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool says(const std::string& text, const char* words) { return text.find(words) != std::string::npos; }

void attributes_are_set_once() {
  for (const int device : {0, 0, 1, 0, 1}) {
    use_device(device);
    for (const int64_t bytes : {1024, 231424, 16}) run(&scan, bytes);
    run(&fold, 0);
  }
  for (const int device : {0, 1}) {
    const auto most = std::make_tuple(address(&scan), device, cudaFuncAttributeMaxDynamicSharedMemorySize);
    const auto carveout = std::make_tuple(address(&scan), device, cudaFuncAttributePreferredSharedMemoryCarveout);
    HOLDS(simulated.attributes[most] == std::make_pair(1, 231424));
    HOLDS(simulated.attributes[carveout] == std::make_pair(1, 100));
  }
  HOLDS(simulated.attributes.size() == 4);  // a kernel without shared memory has the first-level cache
  HOLDS(simulated.queries == 4);
  HOLDS(simulated.launches == 20);
}

void first_launch_is_captured() {
  simulated.capturing = true;
  run(&scan, 100000);
  HOLDS(refusal(address(&fold), 0).first.empty());
  HOLDS(!simulated.capture_broken);
  HOLDS(simulated.mode == cudaStreamCaptureModeGlobal);
  HOLDS(simulated.launches == 1);
}

void no_blocks() {
  launch("scan", &scan, 0, 128, 0, nullptr, Numbers{1});
  HOLDS(simulated.queries == 0);
  try {
    launch("scan", &scan, int64_t{1} << 31, 128, 0, nullptr, Numbers{1});
    HOLDS(false);
  } catch (const std::runtime_error& error) {
    HOLDS(says(error.what(), "scan: the problem needs more than 2^31 blocks"));
  }
}

void a_failed_load_is_tried_again() {
  simulated.loading = cudaErrorNoKernelImageForDevice;
  HOLDS(says(thrown(&scan, 8), "scan: words (cudaErrorNoKernelImageForDevice)"));
  HOLDS(simulated.last == cudaSuccess);
  simulated.loading = cudaSuccess;
  HOLDS(thrown(&scan, 100000).empty());
}

void our_own_fault_is_ours() {
  HOLDS(thrown(&scan, 231425) == "scan: words (cudaErrorInvalidValue)");
  HOLDS(simulated.last == cudaSuccess);
}

void a_fault_of_earlier_work_is_not_ours() {
  for (const int fault : {214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721}) {
    simulated.pending = static_cast<cudaError_t>(fault);
    HOLDS(says(thrown(&scan, 8), "work that was queued on this GPU before scan failed"));
  }
  simulated.pending = cudaSuccess;
  run(&scan, 8);
  simulated.pending = cudaErrorIllegalAddress;
  HOLDS(thrown(&scan, 8) ==
        "work that was queued on this GPU before scan failed: an illegal memory access was encountered "
        "(cudaErrorIllegalAddress); with CUDA_LAUNCH_BLOCKING=1 in the environment the call that fails is the one at fault");
}

void where_launches_wait_a_fault_is_ours() {
  run(&scan, 8);
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  simulated.pending = cudaErrorIllegalAddress;
  HOLDS(thrown(&scan, 8) == "scan: an illegal memory access was encountered (cudaErrorIllegalAddress)");
}

void errors_left_by_others_are_left() {
  simulated.last = cudaErrorInvalidValue;
  HOLDS(thrown(&scan, 8).empty());
  HOLDS(refusal(address(&fold), 1).first.empty());
  HOLDS(simulated.last == cudaErrorInvalidValue);
}

void refusals() {
  simulated.driver = 12040;
  for (const cudaError_t status : {cudaErrorNoKernelImageForDevice, cudaErrorUnsupportedPtxVersion}) {
    simulated.loading = status;
    HOLDS(refusal(address(&scan), 1).first == cudaGetErrorName(status));
  }
  simulated.every_call = cudaErrorInsufficientDriver;
  HOLDS(refusal(address(&scan), 1).first == "cudaErrorInsufficientDriver");
  HOLDS(refusal(address(&scan), 1).second == "words");
  HOLDS(versions() == std::make_pair(12040, 13000));
  HOLDS(refusal(address(&scan), 5).first == "another");
}

}  // namespace

int main(int, char** argv) {
  const std::pair<const char*, void (*)()> cases[] = {
      {"attributes_are_set_once", attributes_are_set_once},
      {"first_launch_is_captured", first_launch_is_captured},
      {"no_blocks", no_blocks},
      {"a_failed_load_is_tried_again", a_failed_load_is_tried_again},
      {"our_own_fault_is_ours", our_own_fault_is_ours},
      {"a_fault_of_earlier_work_is_not_ours", a_fault_of_earlier_work_is_not_ours},
      {"where_launches_wait_a_fault_is_ours", where_launches_wait_a_fault_is_ours},
      {"errors_left_by_others_are_left", errors_left_by_others_are_left},
      {"refusals", refusals},
  };
  for (const auto& [name, function] : cases) {
    if (!argv[1]) std::printf("%s\n", name);
    if (argv[1] && std::strcmp(name, argv[1]) == 0) {
      function();
      return failures ? 1 : 0;
    }
  }
  return argv[1] ? 2 : 0;
}
