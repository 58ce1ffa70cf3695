// The selective scan over K routes of one batch of images or sequences (paper Eq. 5-6), forward and backward.
//
// Axes: batch B, route K, step or pixel L, channel D, state N. All views are (B, K, L, D) or (B, K, L, N) in pixel
// order; step l of route k visits pixel table[k, l]. `Acc` is float, or double if `wide`.
#pragma once
#include "../common/tensor.h"

namespace vmddpm {

struct ScanParams {
  int64_t batch, routes, length, channels, states;
  bool wide;      // accumulate, and return results, in double
  bool softplus;  // delta = softplus(delta + delta_bias)
  bool zoh;       // B-bar by zero-order hold instead of delta * B
  bool sum_routes;  // the routes share one x (stride 0); y and dx are summed over routes in an order fixed by the sizes
  int threads;

  View x, delta, B, C;         // any type, any strides; delta (B, K, L, R) with dt_proj
  const void* A;               // Acc (K, D, N)
  const void* D;               // Acc (K, D) or null
  const void* delta_bias;      // Acc (K, D) or null
  const void* initial_state;   // Acc (B, K, D, N) or null
  const void* dt_proj;         // CPU only: Acc (K, D, R) or null; the step sizes are its product with factor `delta`
  int64_t rank;                // R, or 0 without dt_proj
  const int32_t* table;        // (K, L), rows are permutations, or null

  View y;                      // any type; Acc if sum_routes
  View narrow_y;               // CPU only, with sum_routes: receives y rounded; data null if y is the result itself
  void* last_state;            // Acc (B, K, D, N); on a CPU null if not wanted
  void* checkpoints;           // Acc (B, K, chunks - 1, blocks, N, lanes) of the ScanPlan, or null: states between chunks
};

struct ScanGradParams {
  ScanParams forward;          // y and last_state unused
  bool only_input;             // CPU only: compute dx and dinitial_state only; all other results are null
  View dy;                     // any type; data null if zero
  const void* dlast_state;     // Acc (B, K, D, N) or null
  View dx, ddelta;             // any type; dx Acc if sum_routes; ddelta Acc (B, K, L, R), dense, with dt_proj
  View narrow_dx;              // receives dx rounded, like narrow_y
  void* dB;                    // Acc (B, K, L, N) in pixel order
  void* dC;                    // Acc (B, K, L, N) in pixel order
  void* dA;                    // Acc (pieces of the batch, K, D, N), partial sums; on a CPU null if not wanted
  void* dD;                    // Acc (pieces, K, D) or null
  void* ddelta_bias;           // Acc (pieces, K, D) or null
  void* dinitial_state;        // Acc (B, K, D, N) or null
  void* ddt_proj;              // Acc (pieces, K, D, R) or null
};

// Minimum chunk length. A checkpoint holds N states, so chunks of N steps keep checkpoint memory independent of N.
constexpr int64_t kLeastChunk = 64;

// How the work is split. The split depends on sizes alone, never on the number of threads, so every sum has the same
// order and the result the same bits on one core and on many. The checkpoints' shape:
//   lanes  = bytes of a register (64, 32 or 16) / bytes of Acc
//   blocks = ceil(D / lanes)
//   chunk  = min(max(kLeastChunk, N), max(L, 1))
//   chunks = ceil(L / chunk)
struct ScanPlan {
  int64_t chunk;            // steps between checkpoints; at most one chunk of states is held at a time
  int64_t chunks;
  int64_t checkpoints;      // per sequence: one between consecutive chunks
  int64_t lanes;            // channels per register
  int64_t blocks;           // registers of channels
  int64_t blocks_per_group; // one thread walks the blocks of a group in turn and sums their dB and dC
  int64_t groups;
  int64_t pieces;           // parts of the batch; the sequences of a part are walked in turn and their dA summed
};

}  // namespace vmddpm
