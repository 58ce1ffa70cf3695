// Routes on a GPU: the arguments of a call, VMamba's four regular routes, and the part of a route inside a tile of an
// image.
#pragma once
#include <type_traits>

#include "../common/gpu_tile.h"
#include "cross_scan.h"

namespace vmddpm {
namespace gpu {

// Copies move bits without conversion.
VMDDPM_DEVICE uint64_t widen(uint64_t bits) { return bits; }
VMDDPM_DEVICE uint32_t widen(uint32_t bits) { return bits; }
VMDDPM_DEVICE uint16_t widen(uint16_t bits) { return bits; }
VMDDPM_DEVICE void narrow(uint64_t bits, uint64_t& out) { out = bits; }
VMDDPM_DEVICE void narrow(uint32_t bits, uint32_t& out) { out = bits; }
VMDDPM_DEVICE void narrow(uint16_t bits, uint16_t& out) { out = bits; }

struct CrossArguments {
  int64_t batch, routes, length, channels;
  const int32_t* table;    // null: the regular routes
  const int32_t* inverse;  // inverse[k][table[k][l]] = l
  int32_t height, width, scans;
  View image, sequences;
  bool shared_image;       // one image for all routes: the scan reads it once, the merge sums to it
};

// The images of a scan, and the routes [image, end_route(image)) that read one of them.
struct ScanImages {
  const CrossArguments& a;
  VMDDPM_DEVICE int64_t count() const { return a.shared_image ? 1 : a.routes; }
  VMDDPM_DEVICE int64_t end_route(int64_t image) const { return a.shared_image ? a.routes : image + 1; }
};

// The images of a merge into Acc. Numbers are summed to one image; bits are copied, each route to its own image.
template <typename Acc>
struct MergeImages {
  const CrossArguments& a;
  static constexpr bool kSums = !std::is_integral_v<Acc>;
  VMDDPM_DEVICE int64_t count() const { return kSums ? 1 : a.routes; }
  VMDDPM_DEVICE int64_t end_route(int64_t image) const { return kSums ? a.routes : image + 1; }
};

// A regular walk visits an image line by line, along rows or columns. `lines_back` reverses the order of the lines,
// `line_back` the order inside a line.
struct Walk {
  bool columns, lines_back, line_back;
};

VMDDPM_DEVICE Walk regular_walk(int32_t scans, int64_t route) {
  enum { kCross2d, kUnidi, kBidi, kRot90 };
  const bool odd = route % 2 == 1, late = route >= 2;
  if (scans == kUnidi) return {false, false, false};
  if (scans == kBidi) return {false, late, late};
  if (scans == kCross2d) return {odd, late, late};
  return {odd, odd != late, late};
}

// The step at which a route visits pixel (h, w).
VMDDPM_DEVICE int64_t step_of(const CrossArguments& a, int64_t route, int h, int w) {
  if (a.inverse) return read(a.inverse + route * a.length + static_cast<int64_t>(h) * a.width + w);
  const Walk walk = regular_walk(a.scans, route);
  const int lines = walk.columns ? a.width : a.height, size = walk.columns ? a.height : a.width;
  const int line = walk.columns ? w : h, place = walk.columns ? h : w;
  return static_cast<int64_t>(walk.lines_back ? lines - 1 - line : line) * size +
         (walk.line_back ? size - 1 - place : place);
}

// Divides numbers below 2^16 by a fixed one of them.
class Divisor {
 public:
  VMDDPM_DEVICE explicit Divisor(int by) : factor_(0xffffffffu / static_cast<unsigned>(by) + 1) {}
  VMDDPM_DEVICE int operator()(int number) const {
    const unsigned n = static_cast<unsigned>(number);
    return factor_ == 0 ? number : static_cast<int>(static_cast<uint64_t>(n) * factor_ >> 32);
  }

 private:
  unsigned factor_;  // 2^32 / by rounded up; 0 stands for 2^32
};

// Rows top .. top + height and columns left .. left + width of an image, for some channels. In shared memory pixel (h,
// w) of channel c is at c * plane + (h - top) * pitch + w - left.
struct Tile {
  int channels, height, width, top, left;
  int pitch, plane;
  VMDDPM_DEVICE int pixels() const { return height * width; }
};

// The steps of a route inside a tile, `lines` runs of `size` steps, and their positions in the tile.
struct Passage {
  int lines, size;
  int64_t first, across;  // the first step, and the distance of lines
  int start, line_stride, stride;
};

VMDDPM_DEVICE Passage passage(const Walk& walk, int height, int width, const Tile& tile) {
  const int rows_before = walk.columns ? tile.left : tile.top, before = walk.columns ? tile.top : tile.left;
  const int rows = walk.columns ? width : height, row = walk.columns ? height : width;
  Passage p;
  p.lines = walk.columns ? tile.width : tile.height;
  p.size = walk.columns ? tile.height : tile.width;
  p.across = row;
  p.first = static_cast<int64_t>(walk.lines_back ? rows - rows_before - p.lines : rows_before) * row +
            (walk.line_back ? row - before - p.size : before);
  const int line_stride = walk.columns ? 1 : tile.pitch, stride = walk.columns ? tile.pitch : 1;
  p.start = (walk.lines_back ? (p.lines - 1) * line_stride : 0) + (walk.line_back ? (p.size - 1) * stride : 0);
  p.line_stride = walk.lines_back ? -line_stride : line_stride;
  p.stride = walk.line_back ? -stride : stride;
  return p;
}

// Iterates over a passage in all channels of a tile; at() is the position in shared memory.
class Cursor {
 public:
  VMDDPM_DEVICE Cursor(const Passage& p, int plane)
      : per_size_(p.size), per_lines_(p.lines), lines_(p.lines), size_(p.size), start_(p.start),
        line_stride_(p.line_stride), stride_(p.stride), plane_(plane) {}

  // Moves to step `index`, counted over all lines and channels.
  VMDDPM_DEVICE void go_to(int index) {
    const int line = per_size_(index), channel = per_lines_(line);
    place_ = index - line * size_;
    line_ = line - channel * lines_;
    at_ = start_ + channel * plane_ + line_ * line_stride_ + place_ * stride_;
  }
  VMDDPM_DEVICE int at() const { return at_; }
  VMDDPM_DEVICE void next() {
    at_ += stride_;
    if (++place_ < size_) return;
    place_ = 0;
    at_ += line_stride_ - size_ * stride_;
    if (++line_ < lines_) return;
    line_ = 0;
    at_ += plane_ - lines_ * line_stride_;
  }

 private:
  Divisor per_size_, per_lines_;
  int lines_, size_, start_, line_stride_, stride_, plane_;
  int place_ = 0, line_ = 0, at_ = 0;
};

}  // namespace gpu
}  // namespace vmddpm
