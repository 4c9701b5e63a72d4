// The backward's operands in tile registers: cells of 32 x 32 bf16, two tiles each, and where a worker keeps them.
//
//   rows cell    cell[row][32]                                 the left factor: sums run along the rows
//   pairs cell   cell[column / 16][k / 2][column % 16][k % 2]  the right factor: sums run along k
#pragma once

#include <cstddef>
#include <cstdint>

#include "arch/simd/tiles.h"
#include "attention/backward_schedule.h"
#include "attention/cpu/backward_panel.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/score_terms.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kCell = kTileDepth;
inline constexpr int64_t kTileSize = kTileRows * kTileDepth;  // elements
inline constexpr int64_t kCellSize = 2 * kTileSize;
inline constexpr int kKeyCells = kBackwardKeyTile / kCell;  // of a key tile
static_assert(kCell == 2 * F32::kLanes && kCell <= kPanel);

constexpr int64_t cells_of(int64_t n) { return (n + kCell - 1) / kCell; }
constexpr int64_t in_rows_cell(int64_t row, int64_t k) { return row * kCell + k; }
constexpr int64_t in_pairs_cell(int64_t k, int64_t column) {
  return column / kTileCols * kTileSize + k / 2 * kTileDepth + column % kTileCols * 2 + k % 2;
}

// As TileCache, of cells.
struct CellCache {
  BFloat16* data;
  TileCache::Owner* owners;  // by slot
  int64_t slots, slot_size;
};

// One pair (q, k) or, piecewise, (q2, k2).
struct CellPair {
  BFloat16* queries;      // Q^T, pairs cells [panel][dims]
  BFloat16* query_pairs;  // Q, pairs cells [panel][dims]; zero where it is not finite
  float* dqueries;        // [panel][dim][kPanel]
  // K, rows cells [keys][dims]; then K^T, rows cells [dims][keys], zero where it is not finite.
  CellCache keys;
  BFloat16* dscores;       // dS^T, rows cells [keys][panel]
  BFloat16* dscore_pairs;  // the same, pairs cells
};

// fp32 [key][kPanel] of one cell.
struct CellScores {
  float *scores, *far_scores, *dweights;
};

struct CellScratch {
  CellPair near, far;
  BFloat16 *douts, *dout_pairs;  // as queries and query_pairs, of dO
  CellCache values;              // rows cells [keys][dims]
  BFloat16* weights;             // P^T, as dscores
  CellScores scores;
  // Of one cell: biases and masks, and the factors of dropout.
  float *terms, *dropout;
  BackwardPanel* panels;
};

inline constexpr int64_t kMostCellColumns = 512;

// Most columns of a block: operands both ways round, dQ, and P and dS against one key tile stay in L2, of which every
// processor with tiles has 2 MiB.
constexpr int64_t most_cell_columns(int64_t head_dim, int64_t head_dim_v) {
  constexpr int64_t kBytes = 1280 * 1024;
  const int64_t halves = 2 * (head_dim + head_dim_v) + 3 * kBackwardKeyTile;
  const int64_t most = kBytes / (2 * halves + 4 * head_dim) / kCell * kCell;
  return most < kMostCellColumns ? most : kMostCellColumns;
}

constexpr int64_t cell_block_columns(int64_t part_columns, int64_t most) {
  if (part_columns == 0) return kCell;
  const int64_t blocks = (part_columns + most - 1) / most;
  return round_up_to((part_columns + blocks - 1) / blocks, kCell);
}

// Lays the scratch out for blocks of `columns`; `base` null only measures. What is kept from part to part comes first,
// where the number of columns does not move it. Returns the bytes.
inline size_t carve_cells(const AttentionParams& params, int64_t columns, char* base, CellScratch& scratch) {
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    char* start = base + at;
    at += (bytes + 63) / 64 * 64;
    return start;
  };
  const auto floats = [&](int64_t count) {
    return reinterpret_cast<float*>(take(static_cast<size_t>(count) * sizeof(float)));
  };
  const auto cells = [&](int64_t count) {
    return reinterpret_cast<BFloat16*>(take(static_cast<size_t>(count * kCellSize) * sizeof(BFloat16)));
  };
  const bool piecewise = params.is_piecewise();
  const int64_t steps = cells_of(params.head_dim), steps_v = cells_of(params.head_dim_v);
  const int64_t key_cells = 2 * kKeyCells * steps, value_cells = kKeyCells * steps_v;
  constexpr int64_t kCacheBytes = 8 << 20;
  const int64_t tile_bytes = ((piecewise ? 2 : 1) * key_cells + value_cells) * kCellSize * 2;
  const int64_t most_slots = 1 + kCacheBytes / tile_bytes;
  const int64_t tiles = (params.seqlen_k + kBackwardKeyTile - 1) / kBackwardKeyTile;
  const int64_t slots = tiles < 1 ? 1 : tiles < most_slots ? tiles : most_slots;
  const auto cache = [&](int64_t slot_cells) {
    CellCache result{nullptr, nullptr, slots, slot_cells * kCellSize};
    result.owners = reinterpret_cast<TileCache::Owner*>(take(static_cast<size_t>(slots) * sizeof(TileCache::Owner)));
    result.data = cells(slots * slot_cells);
    return result;
  };
  scratch = {};
  scratch.near.keys = cache(key_cells);
  if (piecewise) scratch.far.keys = cache(key_cells);
  scratch.values = cache(value_cells);

  const int64_t panels = columns / kCell;
  const auto pair = [&](CellPair& result) {
    result.queries = cells(panels * steps);
    result.query_pairs = cells(panels * steps);
    result.dqueries = floats(panels * steps * kCell * kPanel);
    result.dscores = cells(panels * kKeyCells);
    result.dscore_pairs = cells(panels * kKeyCells);
  };
  pair(scratch.near);
  if (piecewise) pair(scratch.far);
  scratch.douts = cells(panels * steps_v);
  scratch.dout_pairs = cells(panels * steps_v);
  scratch.weights = cells(panels * kKeyCells);
  scratch.scores = {floats(kCell * kPanel), floats(piecewise ? kCell * kPanel : 0), floats(kCell * kPanel)};
  scratch.terms = floats(ScoreTerms::exist(params) ? kCell * kPanel : 0);
  scratch.dropout = floats(params.dropout.rng_state != nullptr ? kCell * kPanel : 0);
  scratch.panels = reinterpret_cast<BackwardPanel*>(take(static_cast<size_t>(panels) * sizeof(BackwardPanel)));
  return at;
}

}  // namespace flagattn::FLAGATTN_ISA
