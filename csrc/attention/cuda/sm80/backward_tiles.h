// The tiles of the backward kernels, and which of their instantiations serves a problem on a GPU. Pure functions.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "attention/cuda/sm80/heuristics.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Tiles per head dim, for eight warps. The gradients of a tile of keys and values stay in accumulator registers (64 per
// thread at head dim 64; 96, 128, 96 and 128 at 96 to 256), and so do, for a while, the scores of all query rows and
// their gradients (128 at head dim 64, 64 up to 128, 32 beyond). Score terms need registers of their own, so that at
// head dim 64 there are half as many scores. Head dim 256 has shared memory for one slot of queries.
struct BackwardTile {
  int block_m;  // query rows
  int block_n;  // keys
  int warps;
  int slots;            // that queries and output gradients pass through
  int score_rows = 32;  // of a warp
};

constexpr BackwardTile backward_tile(int kernel_head_dim, bool has_terms) {
  if (kernel_head_dim > 128) return {64, 64, 8, kernel_head_dim > 192 ? 1 : 2};
  return {kernel_head_dim <= 64 && !has_terms ? 128 : 64, 128, 8, 2};
}

// Tiles for GPUs that give a block less shared memory than those take, down to the 99 KiB of compute capability 8.6,
// 8.9 and 12. At head dim 64 the one with score terms fits as it is. 256 has room for half of everything.
constexpr BackwardTile small_backward_tile(int kernel_head_dim) {
  if (kernel_head_dim <= 64) return backward_tile(kernel_head_dim, true);
  if (kernel_head_dim <= 128) return {64, 64, 8, 1};
  return {32, 32, 4, 1, 16};
}

// What the largest of the tiles takes, rounded up: GPUs of compute capability 8.0, 8.7, 9.0 and 10.0 give it.
inline constexpr int64_t kSharedBytesOfTiles = 163 << 10;

// The instantiation of the main kernel that serves a problem: columns beyond the operand's are zeros. Fewer are made
// with score terms, and small ones only with them: they serve problems without terms as well.
struct BackwardKernel {
  int head_dim;
  bool has_terms;
  bool is_small;

  constexpr BackwardTile tile() const {
    return is_small ? small_backward_tile(head_dim) : backward_tile(head_dim, has_terms);
  }
};

// For a GPU that gives a block `shared_bytes`.
constexpr BackwardKernel backward_kernel(const AttentionParams& params, int64_t shared_bytes) {
  const bool is_small = shared_bytes < kSharedBytesOfTiles, has_terms = is_small || has_score_terms(params);
  const int64_t widest = params.head_dim > params.head_dim_v ? params.head_dim : params.head_dim_v;
  int head_dim = 256;
  for (const int width : {192, 128, 96, 64}) {
    if (widest <= width && !(has_terms && (width == 96 || width == 192))) head_dim = width;
  }
  return {head_dim, has_terms, is_small && head_dim > 64};
}

// Of the kernel that makes the gradient of a bias. Up to head dim 128 it is small enough for every GPU.
constexpr BackwardTile bias_tile(int kernel_head_dim, bool is_small) {
  return is_small ? small_backward_tile(kernel_head_dim) : BackwardTile{64, 64, 8, 1};
}

}  // namespace flagattn::sm80
