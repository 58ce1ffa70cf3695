// The order in which one route visits the pixels of an image, and the reverse question: at which step it visits a pixel.
#pragma once
#include "cpu.h"

namespace {

using vmddpm::CrossScanParams;
using vmddpm::View;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// A regular walk goes along the rows of height x width pixels, or along the columns, from the left or from the right;
// a reversed one is the same read backwards. A walk along a table does as the table says.
struct Walk {
  int64_t height, width;
  bool columns, from_right, reversed;
  const int32_t* pixels;  // pixels[step], null in a regular walk
  const int32_t* steps;   // steps[pixel], null in a regular walk
  int64_t length() const { return height * width; }
};

// All routes of one call.
struct Walks {
  int64_t height, width, length;
  int32_t scans;
  const int32_t *table, *inverse;  // (K, L), null for the regular ones
  bool undone;                     // sequences are visited in the order of pixels, rather than pixels in that of sequences

  Walk operator[](int64_t k) const {
    if (table) {
      const int32_t *pixels = table + k * length, *steps = inverse ? inverse + k * length : nullptr;
      return {1, length, false, false, false, undone ? steps : pixels, undone ? pixels : steps};
    }
    enum { kCross2d, kUnidi, kBidi, kRot90 };
    Walk walk{height, width, false, scans == kRot90, false, nullptr, nullptr};
    if (scans != kUnidi) walk.reversed = k >= 2;
    if (scans == kCross2d || scans == kRot90) walk.columns = k % 2 == 1;
    if (!walk.columns) return walk;
    if (height == 1 || width == 1) {  // a single row or column reads the same along the other
      walk.columns = false;
      if (walk.from_right && height == 1) walk.reversed = !walk.reversed;
      return walk;
    }
    if (undone) {
      // A matrix read along its columns is its transpose, whose columns are the matrix again. From the right it is a
      // quarter turn, which three more undo: one more, read backwards.
      walk.height = width;
      walk.width = height;
      if (walk.from_right) walk.reversed = !walk.reversed;
    }
    return walk;
  }
};

// steps[i] = the step at which the walk visits pixel first + i.
inline void steps_of_pixels(const Walk& walk, int64_t first, int64_t count, int64_t* steps) {
  if (walk.steps) {
    for (int64_t i = 0; i < count; ++i) steps[i] = walk.steps[first + i];
    return;
  }
  const int64_t last = walk.length() - 1;
  if (!walk.columns) {
    for (int64_t i = 0; i < count; ++i) steps[i] = walk.reversed ? last - first - i : first + i;
    return;
  }
  int64_t y = first / walk.width, x = first % walk.width;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t step = (walk.from_right ? walk.width - 1 - x : x) * walk.height + y;
    steps[i] = walk.reversed ? last - step : step;
    if (++x == walk.width) {
      x = 0;
      ++y;
    }
  }
}

}  // namespace
