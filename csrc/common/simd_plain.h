// Registers as plain arrays, with the same operators as vector types, for compilers without GCC's vector types (MSVC)
// and, with VMDDPM_PLAIN_VECTORS, for tests. The compiler may vectorise them.
#pragma once

namespace {

template <int lanes>
struct PlainMask {
  bool lane[lanes];
};

template <typename T, int lanes>
struct PlainVec {
  T lane[lanes];
  T& operator[](int64_t i) { return lane[i]; }
  T operator[](int64_t i) const { return lane[i]; }
};

#define VMDDPM_PLAIN_OPERATOR(op)                                                        \
  template <typename T, int n>                                                           \
  inline PlainVec<T, n> operator op(const PlainVec<T, n>& a, const PlainVec<T, n>& b) {  \
    PlainVec<T, n> result;                                                               \
    for (int i = 0; i < n; ++i) result.lane[i] = static_cast<T>(a.lane[i] op b.lane[i]); \
    return result;                                                                       \
  }                                                                                      \
  template <typename T, int n>                                                           \
  inline PlainVec<T, n> operator op(const PlainVec<T, n>& a, T b) {                      \
    PlainVec<T, n> result;                                                               \
    for (int i = 0; i < n; ++i) result.lane[i] = static_cast<T>(a.lane[i] op b);         \
    return result;                                                                       \
  }                                                                                      \
  template <typename T, int n>                                                           \
  inline PlainVec<T, n> operator op(T a, const PlainVec<T, n>& b) {                      \
    PlainVec<T, n> result;                                                               \
    for (int i = 0; i < n; ++i) result.lane[i] = static_cast<T>(a op b.lane[i]);         \
    return result;                                                                       \
  }                                                                                      \
  template <typename T, int n, typename Other>                                           \
  inline PlainVec<T, n>& operator op##=(PlainVec<T, n>& a, const Other& b) {             \
    return a = a op b;                                                                   \
  }

VMDDPM_PLAIN_OPERATOR(+)
VMDDPM_PLAIN_OPERATOR(-)
VMDDPM_PLAIN_OPERATOR(*)
VMDDPM_PLAIN_OPERATOR(/)
#undef VMDDPM_PLAIN_OPERATOR

template <typename T, int n>
inline PlainVec<T, n> operator-(const PlainVec<T, n>& a) {
  return T(-1) * a;
}

template <typename T, int n>
inline PlainVec<T, n> operator<<(const PlainVec<T, n>& a, int bits) {
  PlainVec<T, n> result;
  for (int i = 0; i < n; ++i) result.lane[i] = a.lane[i] << bits;
  return result;
}

template <typename T, int n>
inline PlainMask<n> operator<(const PlainVec<T, n>& a, const PlainVec<T, n>& b) {
  PlainMask<n> result;
  for (int i = 0; i < n; ++i) result.lane[i] = a.lane[i] < b.lane[i];
  return result;
}

template <typename T, int n>
inline PlainVec<T, n> select(const PlainMask<n>& mask, const PlainVec<T, n>& a, const PlainVec<T, n>& b) {
  PlainVec<T, n> result;
  for (int i = 0; i < n; ++i) result.lane[i] = mask.lane[i] ? a.lane[i] : b.lane[i];
  return result;
}

}  // namespace
