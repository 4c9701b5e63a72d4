// The compile-time side of the backward kernel: how a block's five products are dealt to its warps, and shared memory.
#pragma once

#include <cstddef>

#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/backward_heuristics.h"

namespace flagattn::sm80 {

template <typename ElementType, int kHeadDimension, bool kHasTerms = false,
          BackwardTile kTileSizes = backward_tile(kHeadDimension, kHasTerms)>
struct BackwardTraits {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr bool kTerms = kHasTerms;  // masks, biases, ALiBi or dropout may join the scores
  static constexpr BackwardTile kTile = kTileSizes;
  static constexpr int kBlockM = kTile.block_m;
  static constexpr int kBlockN = kTile.block_n;
  static constexpr int kSlots = kTile.slots;
  static constexpr int kWarps = kTile.warps;
  static constexpr int kThreads = kWarps * ptx::kWarpSize;

  // A warp takes two row tiles of a product, so that a fragment of the right operand serves twice; of scores one where
  // there are too few keys for all warps.
  static constexpr int kWarpRows = 32;

  // Scores and their gradients (queries x keys): warp w has rows kTile.score_rows (w % kQueryWarps) and the keys that
  // follow from w / kQueryWarps.
  static constexpr int kRowTiles = kTile.score_rows / 16;
  static constexpr int kRowsPerThread = 2 * kRowTiles;
  static constexpr int kQueryWarps = kBlockM / kTile.score_rows;
  static constexpr int kWarpKeys = kBlockN / (kWarps / kQueryWarps);

  // dQ (queries x columns), dK and dV (keys x columns). Columns are dealt in groups of 16, one group to each warp of a
  // row of warps in turn, so that every warp's first group lies where an XOR reaches the others (shared_tile.cuh).
  static constexpr int kColumnGroups = kHeadDim / 16;
  static constexpr int kMostColumnWarps = kWarps / (kBlockM / kWarpRows);
  static constexpr int kDqColumnWarps = kMostColumnWarps / (kColumnGroups % kMostColumnWarps == 0 ? 1 : 2);
  static constexpr int kDqRowWarps = kWarps / kDqColumnWarps;
  static constexpr int kDqRowTiles = kBlockM / 16 / kDqRowWarps;
  static constexpr int kKeyRowTiles = kWarpRows / 16;
  static constexpr int kKeyWarps = kBlockN / kWarpRows;
  static constexpr int kKeyColumnWarps = kWarps / kKeyWarps;
  static_assert(kColumnGroups % kDqColumnWarps == 0 && kColumnGroups % kKeyColumnWarps == 0);

  struct Slot {
    Element q[kBlockM * kHeadDim];
    Element dout[kBlockM * kHeadDim];
  };
  struct Tiles {
    alignas(1024) Element k[kBlockN * kHeadDim];
    Element v[kBlockN * kHeadDim];
    Slot slots[kSlots];
    Element weights[kBlockM * kBlockN];
    Element dscores[kBlockM * kBlockN];
    float statistics[kSlots][2 * kBlockM];
  };

  // Where they lie, in bytes: addresses are one base and these constants.
  static constexpr uint32_t kKeys = offsetof(Tiles, k);
  static constexpr uint32_t kValues = offsetof(Tiles, v);
  static constexpr uint32_t kQueries = offsetof(Tiles, slots);
  static constexpr uint32_t kDouts = kQueries + offsetof(Slot, dout);
  static constexpr uint32_t kSlotBytes = sizeof(Slot);
  static constexpr uint32_t kWeights = offsetof(Tiles, weights);
  static constexpr uint32_t kDscores = offsetof(Tiles, dscores);
  static constexpr uint32_t kStatistics = offsetof(Tiles, statistics);
  static constexpr uint32_t kStatisticsBytes = sizeof(Tiles::statistics[0]);

  // Accumulators: element [i][j][2 h + e] is row 16 i + 8 h + lane / 4, column 8 j + 2 (lane % 4) + e of the warp's.
  using Scores = float[kRowTiles][kWarpKeys / 8][4];
  using QueryGradients = float[kDqRowTiles][2 * kColumnGroups / kDqColumnWarps][4];
  using KeyGradients = float[kKeyRowTiles][2 * kColumnGroups / kKeyColumnWarps][4];
};

// A warp's scores as the forward's helpers (score_terms.cuh, dropout.cuh) see a tile.
template <typename Traits>
struct WarpScores {
  static constexpr int kBlockN = Traits::kWarpKeys;
  static constexpr int kRowTiles = Traits::kRowTiles;
  static constexpr int kRowsPerThread = Traits::kRowsPerThread;
  using Scores = typename Traits::Scores;
};

// Where a warp's parts begin: of scores and dQ in rows of queries, of dK and dV in rows of keys.
template <typename Traits>
struct WarpParts {
  int lane;
  int query_row, key;
  int dq_row, dq_group;
  int key_row, key_group;

  FLAGATTN_DEVICE explicit WarpParts(int thread) : lane(thread % ptx::kWarpSize) {
    const int warp = thread / ptx::kWarpSize;
    query_row = warp % Traits::kQueryWarps * Traits::kTile.score_rows;
    key = warp / Traits::kQueryWarps * Traits::kWarpKeys;
    dq_row = warp % Traits::kDqRowWarps * Traits::kDqRowTiles * 16;
    dq_group = warp / Traits::kDqRowWarps;
    key_row = warp % Traits::kKeyWarps * Traits::kWarpRows;
    key_group = warp / Traits::kKeyWarps;
  }
};

}  // namespace flagattn::sm80
