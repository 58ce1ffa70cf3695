// One step of the selective scan for each sequence of a batch; updates the state:
//
//   h = exp(delta A) h + delta B x,   y = C h + D x, or (C h + D x) SiLU(z).
//
// Axes: batch B, head H, channel P of a head, state N, group G of heads. `Acc` is float, or double if `wide`. Tensors
// have any types and strides.
#pragma once
#include "../common/tensor.h"

namespace vmddpm {

struct StateUpdateParams {
  int64_t batch, heads, channels, states, groups;
  bool wide;
  bool softplus;        // delta = softplus(delta + delta_bias)
  int threads;
  View state;           // (B, H, P, N), read and written
  View x, delta, z, y;  // (B, 1, H, P); z.data may be null
  View A;               // (H, 1, P, N)
  View B, C;            // (B, 1, G, N)
  View D, delta_bias;   // (H, P) as the last two axes; data null if not given
};

}  // namespace vmddpm
