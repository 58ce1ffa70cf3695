// Environment variables of the emulation, read at every launch so that a test can set them.
//
//   VMDDPM_EMULATION_ORDER          forward (the default), reverse, or random:SEED: the order in which the threads of a
//                                   block run from one barrier or exchange to the next
//   VMDDPM_EMULATION_SHARED_LIMIT   bytes of shared memory that a block may have; 232448, an H100's
//   VMDDPM_EMULATION_RACES          threads (the default) or blocks: whose races ThreadSanitizer finds (launch.cpp)
//   VMDDPM_EMULATION_COUNTS         a file to which every launch appends its memory traffic (counts.h)
#pragma once
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace vmddpm {
namespace emulation {

struct Order {
  enum Kind { kForward, kReverse, kRandom } kind;
  uint64_t seed;
};

inline std::string setting(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

[[noreturn]] inline void refuse_setting(const char* name, const std::string& value, const char* choices) {
  throw std::runtime_error(std::string(name) + "=" + value + ": choose " + choices);
}

inline int64_t number_setting(const char* name, int64_t otherwise) {
  const std::string value = setting(name);
  if (value.empty()) return otherwise;
  char* end;
  const int64_t number = std::strtoll(value.c_str(), &end, 10);
  if (*end != '\0' || number <= 0) refuse_setting(name, value, "a positive number");
  return number;
}

inline Order order_setting() {
  const char* name = "VMDDPM_EMULATION_ORDER";
  const std::string value = setting(name);
  if (value.empty() || value == "forward") return {Order::kForward, 0};
  if (value == "reverse") return {Order::kReverse, 0};
  if (value.compare(0, 7, "random:") == 0) return {Order::kRandom, std::strtoull(value.c_str() + 7, nullptr, 10)};
  refuse_setting(name, value, "forward, reverse or random:SEED");
}

inline bool races_between_blocks_setting() {
  const char* name = "VMDDPM_EMULATION_RACES";
  const std::string value = setting(name);
  if (!value.empty() && value != "threads" && value != "blocks") refuse_setting(name, value, "threads or blocks");
  return value == "blocks";
}

}  // namespace emulation
}  // namespace vmddpm
