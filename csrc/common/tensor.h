// A tensor as kernels see it: an address, a type and strides. csrc/ uses no framework headers.
#pragma once
#include <cstdint>

namespace vmddpm {

enum class DType : int32_t { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

// The size of an element in bytes.
inline int64_t size_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

// A strided tensor of up to four axes; strides count elements and may be 0 (an axis that repeats) or negative.
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride[4] = {0, 0, 0, 0};
};

}  // namespace vmddpm
