// Memory traffic of a launch, counted as a GPU's memory system does. For global memory, the lanes of a warp that access
// together count each 32-byte sector once, whatever part of it they use. For shared memory, passes of a warp's access
// are counted; each bank serves one 4-byte word per pass. Caches are ignored. Lanes access together if they execute the
// same source line for the same time in a block.
//
// Only read, write, read_vector, write_vector, read_shared and write_shared of gpu.h are counted.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "emulation.h"

namespace vmddpm {
namespace emulation {

class Counts {
 public:
  // Starts counting if a file is named.
  void start(const std::string& file);
  void note(Access kind, const void* address, int bytes, Site site, int thread, const char* shared);
  void end_block();
  // Appends a JSON line to the file.
  void finish(const char* kernel, int64_t blocks);
  bool on() const { return !file_.empty(); }

 private:
  struct Together {
    std::vector<uintptr_t> units;  // sectors, or words of shared memory
  };
  struct Place {
    Access kind;
    Site site;
    std::vector<int> times;                      // of each thread
    std::vector<std::vector<Together>> of_warps;  // [warp][time]
  };
  struct Sum {
    int64_t bytes, units, passes, least;
  };

  Place& place(Access kind, Site site);

  std::string file_;
  std::vector<Place> places_;
  Sum sums_[4];
};

extern Counts counts;

}  // namespace emulation
}  // namespace vmddpm
