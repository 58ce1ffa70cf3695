// The selective scan over K routes of one batch of images or sequences (paper Eq. 5-6), forward and backward.
//
// Axes: batch B, route K, step or pixel L, channel D, state N. All views are (B, K, L, D) or (B, K, L, N) in pixel
// order; step l of route k stands at pixel table[k, l]. `Acc` is float, or double if `wide`.
#pragma once
#include "../common/tensor.h"

namespace vmddpm {

struct ScanParams {
  int64_t batch, routes, length, channels, states;
  bool wide;      // accumulate, and return results, in double
  bool softplus;  // delta = softplus(delta + delta_bias)
  bool zoh;       // B-bar by zero-order hold instead of delta * B
  bool sum_routes;  // the routes share one x (stride 0) and y and dx are summed over them, in an order of the sizes alone
  int threads;

  View x, delta, B, C;         // any type, any strides; delta (B, K, L, R) where there is dt_proj
  const void* A;               // Acc (K, D, N)
  const void* D;               // Acc (K, D) or null
  const void* delta_bias;      // Acc (K, D) or null
  const void* initial_state;   // Acc (B, K, D, N) or null
  const void* dt_proj;         // on a CPU: Acc (K, D, R), of which and the factor `delta` the step sizes are the product; or null
  int64_t rank;                // R, or 0 without dt_proj
  const int32_t* table;        // (K, L), rows are permutations, or null

  View y;                      // any type; Acc if sum_routes
  View narrow_y;               // on a CPU, if sum_routes: where y goes, rounded; data null if y is the result itself
  void* last_state;            // Acc (B, K, D, N); on a CPU null if not wanted
  void* checkpoints;           // Acc (B, K, chunks - 1, blocks, N, lanes) of the ScanPlan, or null: states between chunks
};

struct ScanGradParams {
  ScanParams forward;          // y and last_state unused
  bool only_input;             // on a CPU: nothing but dx and dinitial_state is wanted, all else is null
  View dy;                     // any type; data null if zero
  const void* dlast_state;     // Acc (B, K, D, N) or null
  View dx, ddelta;             // any type; dx Acc if sum_routes; ddelta Acc (B, K, L, R), dense, where there is dt_proj
  View narrow_dx;              // as narrow_y
  void* dB;                    // Acc (B, K, L, N) in pixel order
  void* dC;                    // likewise
  void* dA;                    // Acc (pieces of the batch, K, D, N), to be summed over them; on a CPU null if not wanted
  void* dD;                    // Acc (pieces, K, D) or null
  void* ddelta_bias;           // Acc (pieces, K, D) or null
  void* dinitial_state;        // Acc (B, K, D, N) or null
  void* ddt_proj;              // Acc (pieces, K, D, R) or null
};

// A checkpoint holds N states: chunks of N steps keep its memory free of N, and shorter ones than this are not worth it.
constexpr int64_t kLeastChunk = 64;

// How sums are cut. All of it depends on sizes alone, never on the number of threads, so that the order of every sum, and
// with it every bit of the result, is the same on one core and on many. Of the checkpoints' shape:
//   lanes  = bytes of a register (64, 32 or 16) / bytes of Acc
//   blocks = ceil(D / lanes)
//   chunk  = min(max(kLeastChunk, N), max(L, 1))
//   chunks = ceil(L / chunk)
struct ScanPlan {
  int64_t chunk;            // steps between checkpoints; no more states are ever held than a chunk's
  int64_t chunks;
  int64_t checkpoints;      // of a sequence: between its chunks
  int64_t lanes;            // channels a register holds
  int64_t blocks;           // registers of channels
  int64_t blocks_per_group; // blocks of a group are walked by one thread, one after another, and their dB and dC summed
  int64_t groups;
  int64_t pieces;           // parts of the batch: the sequences of one are walked one after another, their dA summed
};

}  // namespace vmddpm
