// Where a worker of the backward keeps a block of columns and the key tile they meet: laid out once per call, carved
// from the thread's scratch block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/backward_schedule.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kStripsPerTile = kBackwardKeyTile / kMR;

// Columns [begin, end) of a panel, in whole quads, that see some key of a strip; empty: begin == end.
struct ColumnRange {
  uint8_t begin, end;
};

// One panel of a block: up to kNV vectors of columns.
struct BackwardPanel {
  int64_t first_column;  // in the block
  int num_vectors;
  PanelMask mask;
  alignas(64) float lse[kPanel];    // base 2; kNoWeight where the column takes no gradient
  alignas(64) float delta[kPanel];  // rowsum(dO * O) - dLSE
  // Against the tile at hand; near and far are kept where attention is piecewise.
  ColumnRange seen[kStripsPerTile], near[kStripsPerTile], far[kStripsPerTile];
};

using StripRanges = ColumnRange (BackwardPanel::*)[kStripsPerTile];

// One pair (q, k) or, piecewise, (q2, k2).
struct PairScratch {
  float* queries;     // [panel][head_dim][kPanel]
  float* query_rows;  // strips of kNV vectors of dims: [strip][column][dims]
  float* dqueries;    // as queries
  float* keys;        // of the tile: rows of key_stride
  float* dscores;     // [panel][key][kPanel]
};

struct BackwardScratch {
  PairScratch near, far;
  float *douts, *dout_rows;  // as queries and query_rows, of dO
  float* values;             // as keys
  float* weights;            // P, as dscores
  BackwardPanel* panels;
};

struct BackwardLayout {
  int64_t columns;     // of a block
  int64_t row_stride;  // of a strip of query_rows or dout_rows: columns, and 64 bytes against aliasing
  int64_t key_stride, value_stride;
  size_t total;
};

// Rows of a key tile start 64 bytes apart from a power of two, so that a column of them spreads over L1's sets.
constexpr int64_t tile_row_stride(int64_t dim) { return round_up_to(dim, 16) + 16; }

// Lays the scratch out; `base` null only measures.
inline BackwardScratch carve(const AttentionParams& params, int64_t columns, char* base, BackwardLayout& layout) {
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    char* start = base + at;
    at += (bytes + 63) / 64 * 64;
    return start;
  };
  const auto floats = [&](int64_t count) {
    return reinterpret_cast<float*>(take(static_cast<size_t>(count) * sizeof(float)));
  };
  const int64_t lanes = F32::kLanes;
  const int64_t dim = round_up_to(params.head_dim, lanes), dim_v = round_up_to(params.head_dim_v, lanes);
  // Panels are balanced: there may be one more than columns / kPanel.
  const int64_t panels = (columns / lanes + kNV - 1) / kNV + 1;
  layout.columns = columns;
  layout.key_stride = tile_row_stride(params.head_dim);
  layout.value_stride = tile_row_stride(params.head_dim_v);

  const auto rows = [&](int64_t dims) { return floats(columns * dims + (dims / lanes + 1) * 16); };
  const auto pair = [&] {
    PairScratch result;
    result.queries = floats(panels * kPanel * dim);
    result.query_rows = rows(dim);
    result.dqueries = floats(panels * kPanel * dim);
    result.keys = floats(kBackwardKeyTile * layout.key_stride);
    result.dscores = floats(panels * kBackwardKeyTile * kPanel);
    return result;
  };
  BackwardScratch scratch;
  scratch.near = pair();
  scratch.far = params.is_piecewise() ? pair() : PairScratch{};
  scratch.douts = floats(panels * kPanel * dim_v);
  scratch.dout_rows = rows(dim_v);
  scratch.values = floats(kBackwardKeyTile * layout.value_stride);
  scratch.weights = floats(panels * kBackwardKeyTile * kPanel);
  scratch.panels = reinterpret_cast<BackwardPanel*>(take(static_cast<size_t>(panels) * sizeof(BackwardPanel)));
  layout.total = at;
  return scratch;
}

}  // namespace flagattn::FLAGATTN_ISA
