// The launch of a kernel translated from PTX, as Python calls it, and what it reports.
#include "machine.h"

#include <cstdio>
#include <exception>
#include <string>
#include <unordered_set>
#include <vector>

namespace vmddpm {
namespace ptx {

const Argument* arguments;
uint64_t argument_count;
const int64_t* chosen_blocks;
int planted_kind, planted_line;

namespace {

std::string message;

// Of the blocks that the latest launch counted.
std::vector<int64_t> block_counts, thread_counts, line_bytes[2], line_sectors[2];

long long signed_distance(uint64_t a, uint64_t b) { return static_cast<long long>(a - b); }

}  // namespace

void refuse_global(uint64_t at, int bytes, int alignment, Site site) {
  const uint64_t number = (at >> kTagShift) - 1, place = at << 16 >> 16;
  if (number >= argument_count) {
    emulation::fail(site, "global memory: %d bytes at %#llx, an address that was computed from no argument", bytes,
                    static_cast<unsigned long long>(at));
  }
  const Argument& argument = arguments[number];
  const long long size = signed_distance(argument.high, argument.low), offset = signed_distance(place, argument.low);
  if (offset < 0 || offset + bytes > size) {
    emulation::fail(site, "global memory: bytes %lld to %lld of argument %llu, which has %lld", offset,
                    offset + bytes - 1, static_cast<unsigned long long>(number), size);
  }
  emulation::fail(site, "global memory: %d bytes at %#llx, which is no multiple of %d", bytes,
                  static_cast<unsigned long long>(place), alignment);
}

void refuse_shared(uint64_t at, int bytes, Site site) {
  const long long size = emulation::shared_bytes(), offset = static_cast<long long>(at);
  if (offset < 0 || offset + bytes > size) {
    emulation::fail(site, "shared memory: bytes %lld to %lld of %lld", offset, offset + bytes - 1, size);
  }
  emulation::fail(site, "shared memory: %d bytes at %lld, which is no multiple of %d", bytes, offset, bytes);
}

void refuse_parameter(int64_t at, int bytes, Site site) {
  emulation::fail(site, "parameters: %d bytes at %lld of %lld", bytes, static_cast<long long>(at),
                  static_cast<long long>(kParameterBytes));
}

#if defined(PTX_COUNT)

namespace {

// Visits of each block by the lane that runs and by its warp since the warp last met; those of earlier stretches
// are out of date.
struct Visits {
  uint64_t stretch;
  int64_t count;
};
std::vector<Visits> lane_visits[emulation::kLanes], warp_visits, line_visits[emulation::kLanes];

// The 32-byte sectors that one instruction of one warp touches.
std::unordered_set<uint64_t> sectors;
uint64_t sectors_stretch;

int64_t visit(Visits& visits) {
  if (visits.stretch != emulation::stretch) visits = {emulation::stretch, 0};
  return ++visits.count;
}

}  // namespace

// A warp executes a block as often as that of its lanes which does so most often from one meeting to the next.
void count_block(int block) {
  ++thread_counts[static_cast<size_t>(block)];
  const int64_t count = visit(lane_visits[emulation::here.thread % emulation::kLanes][static_cast<size_t>(block)]);
  Visits& warp = warp_visits[static_cast<size_t>(block)];
  if (warp.stretch == emulation::stretch && warp.count >= count) return;
  visit(warp);
  ++block_counts[static_cast<size_t>(block)];
}

// An instruction moves each sector once for all lanes that are there with it for the same time.
void count_access(uint64_t at, int bytes, bool writes, int line) {
  const size_t place = static_cast<size_t>(line);
  line_bytes[writes][place] += bytes;
  if (sectors_stretch != emulation::stretch) sectors.clear(), sectors_stretch = emulation::stretch;
  const int64_t turn = visit(line_visits[emulation::here.thread % emulation::kLanes][place]);
  for (uint64_t sector = at / 32; sector <= (at + static_cast<uint64_t>(bytes) - 1) / 32; ++sector) {
    const uint64_t key = ((static_cast<uint64_t>(line) * 0x9e3779b97f4a7c15ull) ^
                          (static_cast<uint64_t>(turn) * 0xc2b2ae3d27d4eb4full)) + sector * 0x165667b19e3779f9ull;
    if (sectors.insert(key).second) ++line_sectors[writes][place];
  }
}

#endif

#if defined(PTX_FAULTS)

namespace {

// A fault may make a loop endless. So many basic blocks are more than the threads of any block of a grid execute.
constexpr int64_t kMostSteps = 20'000'000;
int64_t steps, block_of_steps;

std::vector<int64_t> visits;

}  // namespace

void visit_block(int block) {
  ++visits[static_cast<size_t>(block)];
  if (block_of_steps != emulation::here.block) block_of_steps = emulation::here.block, steps = 0;
  if (++steps > kMostSteps) emulation::fail({}, "%lld basic blocks and no end", static_cast<long long>(steps));
}

#endif

}  // namespace ptx
}  // namespace vmddpm

using namespace vmddpm;

#define EXPORTED extern "C" __attribute__((visibility("default")))

// null, or what was wrong.
EXPORTED const char* ptx_launch(const char* name, const void* parameters, int64_t parameter_bytes,
                                const ptx::Argument* arguments, int64_t argument_count, const int64_t* chosen,
                                int64_t blocks, int threads, int64_t shared_bytes) {
  ptx::arguments = arguments;
  ptx::argument_count = static_cast<uint64_t>(argument_count);
  ptx::chosen_blocks = chosen;
#if defined(PTX_COUNT)
  ptx::block_counts.assign(static_cast<size_t>(ptx::kBlocks), 0);
  ptx::thread_counts.assign(static_cast<size_t>(ptx::kBlocks), 0);
  ptx::warp_visits.assign(static_cast<size_t>(ptx::kBlocks), {});
  for (auto& visits : ptx::lane_visits) visits.assign(static_cast<size_t>(ptx::kBlocks), {});
  for (auto& visits : ptx::line_visits) visits.assign(static_cast<size_t>(ptx::kLines), {});
  for (int w = 0; w < 2; ++w) {
    ptx::line_bytes[w].assign(static_cast<size_t>(ptx::kLines), 0);
    ptx::line_sectors[w].assign(static_cast<size_t>(ptx::kLines), 0);
  }
#endif
#if defined(PTX_FAULTS)
  ptx::steps = 0;
  ptx::visits.resize(static_cast<size_t>(ptx::kBlocks));
#endif
  try {
    if (parameter_bytes != ptx::kParameterBytes) {
      throw std::runtime_error("its arguments are " + std::to_string(parameter_bytes) + " bytes, in the PTX " +
                               std::to_string(ptx::kParameterBytes));
    }
    if (threads > ptx::kMostThreads) {
      throw std::runtime_error(std::to_string(threads) + " threads, and the PTX allows " +
                               std::to_string(ptx::kMostThreads));
    }
    emulation::launch(name, ptx::kernel, parameters, blocks, threads, shared_bytes);
    emulation::free_stacks();
    return nullptr;
  } catch (const std::exception& error) {
    emulation::free_stacks();
    ptx::message = error.what();
    return ptx::message.c_str();
  }
}

// The fault that later launches have; of a library that was compiled for faults.
EXPORTED void ptx_plant(int kind, int line) {
  ptx::planted_kind = kind;
  ptx::planted_line = line;
}

#if defined(PTX_FAULTS)
// How often threads executed each basic block, in all launches.
EXPORTED const int64_t* ptx_visits() {
  ptx::visits.resize(static_cast<size_t>(ptx::kBlocks));
  return ptx::visits.data();
}
#endif

// Of the latest launch: how often warps, and threads, executed each basic block; for each line of the PTX the bytes that its lanes
// loaded, the sectors that its warps loaded, and both for stores.
EXPORTED const int64_t* ptx_block_counts() { return ptx::block_counts.data(); }
EXPORTED const int64_t* ptx_thread_counts() { return ptx::thread_counts.data(); }
EXPORTED const int64_t* ptx_line_bytes(int writes) { return ptx::line_bytes[writes].data(); }
EXPORTED const int64_t* ptx_line_sectors(int writes) { return ptx::line_sectors[writes].data(); }
