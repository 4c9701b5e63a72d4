// Where a worker of the backward keeps a block of columns and the key tile they meet: laid out once per call, carved
// from the thread's scratch block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_panel.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/score_terms.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

// Key tiles, packed: rows of `stride` floats. A tile is kept until another needs its slot, for blocks, parts and query
// heads that meet it again: its rows lie in as many pages of the operand, and finding those costs more than reading
// them.
struct TileCache {
  // What a slot holds: where the tile's first row lies in the operand, and how many rows were packed. Both, since rows
  // of stride 0 (expanded operands) begin in one place for sequences of any length.
  struct Owner {
    const void* rows;
    int64_t num_rows;
    bool finite;
  };
  float* data;
  Owner* owners;  // by slot
  int64_t slots, stride;
};

// One pair (q, k) or, piecewise, (q2, k2).
struct PairScratch {
  float* queries;     // [panel][head_dim][kPanel]
  float* query_rows;  // strips of kNV vectors of dims: [strip][column][dims]
  float* dqueries;    // as queries
  TileCache keys;
  float* dscores;  // [panel][key][kPanel]
};

struct BackwardScratch {
  PairScratch near, far;
  float *douts, *dout_rows;  // as queries and query_rows, of dO
  TileCache values;
  float* weights;  // P, as dscores
  // Of one panel against one tile: biases and masks, and the factors of dropout.
  float *terms, *dropout;
  BackwardPanel* panels;
};

struct BackwardLayout {
  int64_t columns;  // of a block; rows of a strip of query_rows or dout_rows
  size_t total;
};

// Rows of a key tile start 64 bytes apart from a power of two, so that a column of them spreads over L1's sets.
constexpr int64_t tile_row_stride(int64_t dim) { return round_up_to(dim, 16) + 16; }

// Lays the scratch out; `base` null only measures. What is kept from part to part comes first, where the number of
// columns does not move it.
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
  const bool piecewise = params.is_piecewise();
  const int64_t stride = tile_row_stride(params.head_dim), stride_v = tile_row_stride(params.head_dim_v);
  constexpr int64_t kCacheBytes = 8 << 20;
  const int64_t tile_floats = kBackwardKeyTile * ((piecewise ? 2 : 1) * stride + stride_v);
  const int64_t most_slots = 1 + kCacheBytes / (tile_floats * static_cast<int64_t>(sizeof(float)));
  const int64_t tiles = (params.seqlen_k + kBackwardKeyTile - 1) / kBackwardKeyTile;
  const int64_t slots = tiles < 1 ? 1 : tiles < most_slots ? tiles : most_slots;
  const auto cache = [&](int64_t row_stride) {
    TileCache result{nullptr, nullptr, slots, row_stride};
    result.owners = reinterpret_cast<TileCache::Owner*>(take(static_cast<size_t>(slots) * sizeof(TileCache::Owner)));
    result.data = floats(slots * kBackwardKeyTile * row_stride);
    return result;
  };
  BackwardScratch scratch{};
  scratch.near.keys = cache(stride);
  if (piecewise) scratch.far.keys = cache(stride);
  scratch.values = cache(stride_v);

  const int64_t lanes = F32::kLanes;
  const int64_t dim = round_up_to(params.head_dim, lanes), dim_v = round_up_to(params.head_dim_v, lanes);
  // Panels are balanced: there may be one more than columns / kPanel.
  const int64_t panels = (columns / lanes + kNV - 1) / kNV + 1;
  const auto rows = [&](int64_t dims) { return floats(columns * dims + (dims / lanes + 1) * 16); };
  const auto pair = [&](PairScratch& result) {
    result.queries = floats(panels * kPanel * dim);
    result.query_rows = rows(dim);
    result.dqueries = floats(panels * kPanel * dim);
    result.dscores = floats(panels * kBackwardKeyTile * kPanel);
  };
  pair(scratch.near);
  if (piecewise) pair(scratch.far);
  scratch.douts = floats(panels * kPanel * dim_v);
  scratch.dout_rows = rows(dim_v);
  scratch.weights = floats(panels * kBackwardKeyTile * kPanel);
  scratch.terms = floats(ScoreTerms::exist(params) ? kBackwardKeyTile * kPanel : 0);
  scratch.dropout = floats(params.dropout.rng_state != nullptr ? kBackwardKeyTile * kPanel : 0);
  scratch.panels = reinterpret_cast<BackwardPanel*>(take(static_cast<size_t>(panels) * sizeof(BackwardPanel)));
  layout = {columns, at};
  return scratch;
}

}  // namespace flagattn::FLAGATTN_ISA
