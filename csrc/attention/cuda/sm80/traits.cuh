// The compile-time side of the forward kernel: its tiles, fragments and shared memory.
#pragma once

#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

// With kTerms, masks, biases, ALiBi or dropout may join the scores.
template <typename ElementType, int kHeadDimension, bool kHasTerms = false>
struct ForwardTraits {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr bool kTerms = kHasTerms;
  static constexpr ForwardTile kTile = forward_tile(kHeadDim, kTerms);
  static constexpr int kBlockM = kTile.block_m;
  static constexpr int kBlockN = kTile.block_n;
  static constexpr int kThreads = kTile.warps * ptx::kWarpSize;
  static constexpr int kSlots = kTile.slots;

  // A warp owns kRowTiles x 16 query rows; a thread holds two rows of each of these tiles.
  static constexpr int kRowsPerWarp = kBlockM / kTile.warps;
  static constexpr int kRowTiles = kRowsPerWarp / 16;
  static constexpr int kRowsPerThread = 2 * kRowTiles;

  // The output leaves through q: a warp's rows of it are its own, and read for the last time long before.
  struct SharedStorage {
    alignas(1024) Element q[kBlockM * kHeadDim];
    Element ring[kSlots][kBlockN * kHeadDim];
  };

  // Accumulators of a warp's (kRowsPerWarp, 8 kTiles) tile: element [i][j][2 h + e] is row 16 i + 8 h + lane / 4,
  // column 8 j + 2 (lane % 4) + e.
  template <int kTiles>
  using Accumulator = float[kRowTiles][kTiles][4];
  using Scores = Accumulator<kBlockN / 8>;
  using Output = Accumulator<kHeadDim / 8>;
};

}  // namespace flagattn::sm80
