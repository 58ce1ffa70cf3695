// What a launch moves, counted as a GPU's memory system does: of the lanes of a warp that make the same access together,
// each sector of 32 bytes once, whatever part of it they ask for; and of shared memory, the passes that a warp's access
// takes, as each bank serves one word of 4 bytes a pass. No cache is counted on. Lanes make an access together when it is
// the same line of the source for the same time in a block.
//
// Only what goes through read, write, read_vector, write_vector, read_shared and write_shared of gpu.h is counted.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "emulation.h"

namespace vmddpm {
namespace emulation {

class Counts {
 public:
  // Counts from here on if a file is named.
  void start(const std::string& file);
  void note(Access kind, const void* address, int bytes, Site site, int thread, const char* shared);
  void end_block();
  // Appends a line of JSON to the file.
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
