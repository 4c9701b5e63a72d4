// The compile-time side of the backward kernel: how a block's five products are dealt to its warps, and shared memory.
#pragma once

#include <cstddef>

#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/backward_heuristics.h"

namespace flagattn::sm80 {

template <typename ElementType, int kHeadDimension>
struct BackwardTraits {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr BackwardTile kTile = backward_tile(kHeadDim);
  static constexpr int kBlockM = kTile.block_m;
  static constexpr int kBlockN = kTile.block_n;
  static constexpr int kWarps = kTile.warps;
  static constexpr int kThreads = kWarps * ptx::kWarpSize;

  // A warp's part of every product has 32 rows: two row tiles, so that a fragment of the right operand serves twice.
  static constexpr int kWarpRows = 32;
  static constexpr int kRowTiles = kWarpRows / 16;
  static constexpr int kRowsPerThread = 2 * kRowTiles;

  // Scores and their gradients (queries x keys), and dQ (queries x columns): warp w has rows 32 (w % kQueryWarps) and
  // the columns that follow from w / kQueryWarps.
  static constexpr int kQueryWarps = kBlockM / kWarpRows;
  static constexpr int kWarpKeys = kBlockN / (kWarps / kQueryWarps);
  static constexpr int kWarpQueryColumns = kHeadDim / (kWarps / kQueryWarps);

  // dK and dV (keys x columns).
  static constexpr int kKeyWarps = kBlockN / kWarpRows;
  static constexpr int kWarpKeyColumns = kHeadDim / (kWarps / kKeyWarps);

  struct Slot {
    Element q[kBlockM * kHeadDim];
    Element dout[kBlockM * kHeadDim];
  };
  struct Tiles {
    alignas(1024) Element k[kBlockN * kHeadDim];
    Element v[kBlockN * kHeadDim];
    Slot slots[2];
    Element weights[kBlockM * kBlockN];
    Element dscores[kBlockM * kBlockN];
    float statistics[2][2 * kBlockM];
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

  // Accumulators: element [i][j][2 h + e] is row 16 i + 8 h + lane / 4, column 8 j + 2 (lane % 4) + e.
  template <int kColumns>
  using Accumulator = float[kRowTiles][kColumns / 8][4];
  using Scores = Accumulator<kWarpKeys>;
  using QueryGradients = Accumulator<kWarpQueryColumns>;
  using KeyGradients = Accumulator<kWarpKeyColumns>;
};

// Where a warp's parts begin: of scores and dQ in rows of queries, of dK and dV in rows of keys.
template <typename Traits>
struct WarpParts {
  int lane;
  int query_row, key, query_column;
  int key_row, key_column;

  FLAGATTN_DEVICE explicit WarpParts(int thread) : lane(thread % ptx::kWarpSize) {
    const int warp = thread / ptx::kWarpSize;
    query_row = warp % Traits::kQueryWarps * Traits::kWarpRows;
    key = warp / Traits::kQueryWarps * Traits::kWarpKeys;
    query_column = warp / Traits::kQueryWarps * Traits::kWarpQueryColumns;
    key_row = warp % Traits::kKeyWarps * Traits::kWarpRows;
    key_column = warp / Traits::kKeyWarps * Traits::kWarpKeyColumns;
  }
};

}  // namespace flagattn::sm80
