// One panel of a block of the attention backward: which columns it has, what they see, and their statistics.
#pragma once

#include <cstdint>

#include "attention/backward_schedule.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"

namespace flagattn::FLAGATTN_ISA {

// The largest head dim the ops take.
inline constexpr int64_t kMostHeadDim = 256;

// As the LSE of a column that takes no gradient: exp(x - kNoWeight) is 0 for every finite x.
inline constexpr float kNoWeight = 1e30f;

inline constexpr int kStripsPerTile = kBackwardKeyTile / kMR;

// Columns [begin, end) of a panel, in whole quads, that see some key of a strip; empty: begin == end.
struct ColumnRange {
  uint8_t begin, end;
};

// One panel of a block: up to kNV vectors of columns.
struct BackwardPanel {
  int64_t first_column;  // in the block
  int num_vectors;
  Column columns[kPanel];
  PanelMask mask;
  TileSeen tile_seen;               // of the tile at hand, where masks or biases join the scores
  alignas(64) float lse[kPanel];    // kNoWeight where the column takes no gradient
  alignas(64) float delta[kPanel];  // rowsum(dO * O) - dLSE
  // Against the tile at hand; near and far are kept where attention is piecewise.
  ColumnRange seen[kStripsPerTile], near[kStripsPerTile], far[kStripsPerTile];
};

using StripRanges = ColumnRange (BackwardPanel::*)[kStripsPerTile];

}  // namespace flagattn::FLAGATTN_ISA
