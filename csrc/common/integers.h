// Integer arithmetic on sizes. In an unnamed namespace, because each instruction set compiles its own.
#pragma once
#include <cstdint>

namespace {

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
