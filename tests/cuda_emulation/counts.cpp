#include "counts.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "scheduler.h"

namespace vmddpm {
namespace emulation {

Counts counts;

namespace {

constexpr int kSector = 32, kWord = 4, kBanks = 32;

bool is_shared(Access kind) { return kind == Access::read_shared || kind == Access::write_shared; }

}  // namespace

void Counts::start(const std::string& file) {
  file_ = file;
  places_.clear();
  for (Sum& sum : sums_) sum = {};
}

Counts::Place& Counts::place(Access kind, Site site) {
  for (Place& place : places_) {
    if (place.kind == kind && place.site.line == site.line && place.site.file == site.file) return place;
  }
  places_.push_back({kind, site, std::vector<int>(kMostThreads), std::vector<std::vector<Together>>(kMostWarps)});
  return places_.back();
}

void Counts::note(Access kind, const void* address, int bytes, Site site, int thread, const char* shared) {
  Place& here = place(kind, site);
  const size_t time = static_cast<size_t>(here.times[static_cast<size_t>(thread)]++);
  std::vector<Together>& warp = here.of_warps[static_cast<size_t>(thread / kLanes)];
  if (warp.size() <= time) warp.resize(time + 1);
  std::vector<uintptr_t>& units = warp[time].units;
  if (bytes == 0) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(address) - (is_shared(kind) ? reinterpret_cast<uintptr_t>(shared) : 0);
  const uintptr_t size = is_shared(kind) ? kWord : kSector;
  for (uintptr_t unit = first / size; unit <= (first + static_cast<uintptr_t>(bytes) - 1) / size; ++unit) {
    if (std::find(units.begin(), units.end(), unit) == units.end()) units.push_back(unit);
  }
  sums_[static_cast<int>(kind)].bytes += bytes;
}

void Counts::end_block() {
  for (Place& here : places_) {
    Sum& sum = sums_[static_cast<int>(here.kind)];
    for (std::vector<Together>& warp : here.of_warps) {
      for (const Together& together : warp) {
        const int64_t units = static_cast<int64_t>(together.units.size());
        int64_t of_bank[kBanks] = {};
        for (const uintptr_t unit : together.units) ++of_bank[unit % kBanks];
        sum.units += units;
        sum.passes += *std::max_element(of_bank, of_bank + kBanks);
        sum.least += (units + kBanks - 1) / kBanks;
      }
      warp.clear();
    }
    std::fill(here.times.begin(), here.times.end(), 0);
  }
}

void Counts::finish(const char* kernel, int64_t blocks) {
  std::FILE* const file = std::fopen(file_.c_str(), "a");
  if (!file) throw std::runtime_error("VMDDPM_EMULATION_COUNTS=" + file_ + ": cannot be written");
  const auto moved = [&](const char* name, Access kind) {
    const Sum& sum = sums_[static_cast<int>(kind)];
    std::fprintf(file, ", \"%s_bytes\": %lld, \"%s_sectors\": %lld", name, static_cast<long long>(sum.bytes), name,
                 static_cast<long long>(sum.units));
  };
  const auto passed = [&](const char* name, Access kind) {
    const Sum& sum = sums_[static_cast<int>(kind)];
    std::fprintf(file, ", \"%s_passes\": %lld, \"%s_least\": %lld", name, static_cast<long long>(sum.passes), name,
                 static_cast<long long>(sum.least));
  };
  std::fprintf(file, "{\"kernel\": \"%s\", \"blocks\": %lld", kernel, static_cast<long long>(blocks));
  moved("read", Access::read);
  moved("write", Access::write);
  passed("read_shared", Access::read_shared);
  passed("write_shared", Access::write_shared);
  std::fprintf(file, "}\n");
  std::fclose(file);
}

}  // namespace emulation
}  // namespace vmddpm
