// The order in which a route visits the pixels of an image, and its inverse, the step that visits a pixel.
#pragma once
#include "../common/integers.h"
#include "cpu.h"

namespace {

using vmddpm::CrossScanParams;
using vmddpm::View;

// A regular walk goes along the rows of height x width pixels or along their columns, starting at the left or at the
// right, and may be reversed. Other walks follow a table.
struct Walk {
  int64_t height, width;
  bool columns, from_right, reversed;
  const int32_t* pixels;  // pixels[step]
  const int32_t* steps;   // steps[pixel]
  int64_t length() const { return height * width; }
};

// Regular walk k of VMamba's four or, with `undone`, its inverse: the steps in the order of the pixels.
inline Walk regular_walk(int64_t height, int64_t width, int32_t scans, int64_t k, bool undone) {
  enum { kCross2d, kUnidi, kBidi, kRot90 };
  Walk walk{height, width, false, scans == kRot90, false, nullptr, nullptr};
  if (scans != kUnidi) walk.reversed = k >= 2;
  if (scans == kCross2d || scans == kRot90) walk.columns = k % 2 == 1;
  if (!walk.columns) return walk;
  if (height == 1 || width == 1) {  // a single row or column has the same order along both axes
    walk.columns = false;
    if (walk.from_right && height == 1) walk.reversed = !walk.reversed;
    return walk;
  }
  if (undone) {
    // The inverse of a transposition is a transposition. From the right the walk is a quarter turn; three more quarter
    // turns undo it, which equal one quarter turn, reversed.
    walk.height = width;
    walk.width = height;
    if (walk.from_right) walk.reversed = !walk.reversed;
  }
  return walk;
}

// All routes of a call, either regular or along a table.
struct Walks {
  int64_t height, width, length;
  Walk regular[4];
  bool irregular;                   // the routes follow a table
  const int32_t* pixels = nullptr;  // (K, L), if the job goes by steps
  const int32_t* steps = nullptr;   // (K, L), if the job goes by pixels

  // With `undone`, the inverse walks, from the sequences to the pixels.
  Walks(const CrossScanParams& p, bool undone)
      : height(p.height), width(p.width), length(p.length), irregular(p.table != nullptr) {
    for (int64_t k = 0; k < 4; ++k) regular[k] = regular_walk(height, width, p.scans, k, undone);
  }
  Walk operator[](int64_t k) const {
    if (!pixels && !steps) return regular[k];
    const int64_t row = k * length;
    return {1, length, false, false, false, pixels ? pixels + row : nullptr, steps ? steps + row : nullptr};
  }
};

// steps[i] = the step at which the walk visits pixel first + i.
template <typename Step>
inline void steps_of_pixels(const Walk& walk, int64_t first, int64_t count, Step* steps) {
  if (walk.steps) {
    for (int64_t i = 0; i < count; ++i) steps[i] = walk.steps[first + i];
    return;
  }
  const int64_t last = walk.length() - 1;
  if (!walk.columns) {
    for (int64_t i = 0; i < count; ++i) steps[i] = static_cast<Step>(walk.reversed ? last - first - i : first + i);
    return;
  }
  // Along a row the step changes by a constant.
  const int64_t sign = walk.reversed ? -1 : 1, across = sign * (walk.from_right ? -walk.height : walk.height);
  int64_t y = first / walk.width, x = first % walk.width;
  for (int64_t i = 0; i < count; x = 0, ++y) {
    const int64_t step = (walk.from_right ? walk.width - 1 - x : x) * walk.height + y;
    const int64_t here = walk.reversed ? last - step : step, columns = minimum(walk.width - x, count - i);
    for (int64_t j = 0; j < columns; ++j) steps[i + j] = static_cast<Step>(here + j * across);
    i += columns;
  }
}

}  // namespace
