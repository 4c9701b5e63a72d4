// BackwardWorker (backward_worker.h) for bf16 in tile registers: cells of 32 keys and 32 columns instead of strips.
#pragma once

#include <cstdint>

#include "arch/simd/tiles.h"
#include "attention/cpu/backward_cell_block.h"
#include "attention/cpu/backward_cell_products.h"
#include "attention/cpu/backward_cell_scores.h"
#include "attention/cpu/dropout.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardCellWorker : BackwardCellBlock {
 public:
  static size_t scratch_bytes(const AttentionParams& params) {
    CellScratch scratch;
    return carve_cells(params, most_cell_columns(params.head_dim, params.head_dim_v), nullptr, scratch);
  }

  // Before a thread's first part: nothing is packed yet.
  static void start(const AttentionParams& params, void* scratch) {
    CellScratch carved;
    carve_cells(params, kCell, static_cast<char*>(scratch), carved);
    const CellCache caches[] = {carved.near.keys, carved.far.keys, carved.values};
    for (const CellCache& cache : caches) {
      for (int64_t slot = 0; slot < cache.slots; ++slot) cache.owners[slot] = {nullptr, 0, true};
    }
  }

  BackwardCellWorker(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
                     const KeyGradients& share)
      : BackwardCellBlock(params, part, scratch, share) {}

  void run() {
    const TileScope tiles;
    const int64_t last = part_.num_columns - 1;
    for (int64_t begin = last / block_columns_ * block_columns_; last >= 0 && begin >= 0; begin -= block_columns_) {
      run_block(begin);
    }
  }

 private:
  void run_block(int64_t first_column) {
    start_block(first_column);
    const TileRange tiles = tiles_of_block();
    for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
      if (start_tile(tile)) run_tile(tile);
    }
    write_dqueries<BFloat16>(params_.dq, scratch_.near.dqueries, dqueries_of_panel());
    if (piecewise_) write_dqueries<BFloat16>(params_.dq2, scratch_.far.dqueries, dqueries_of_panel());
  }

  struct TileKeys {
    const BFloat16 *rows, *transposed;
    bool finite;
  };

  // One cell of the tile at hand that some column sees.
  struct Cell {
    int panel, keys;
    StripKind kind;
    bool clear;
  };
  static constexpr int64_t kMostCells = kMostCellColumns / kCell * kKeyCells;

  // What the products of dK and dV read of so many panels stays in L1.
  static constexpr int kPanelsAtOnce = 8;
  static constexpr unsigned kSomePanels = (1u << kPanelsAtOnce) - 1;

  // Bits of the panels that see a cell of keys.
  using Panels = unsigned[kKeyCells];

  void run_tile(int64_t tile) {
    if (near_seen_) near_ = pack_keys(forward_.k, tile, scratch_.near.keys);
    if (far_seen_) far_ = pack_keys(forward_.k2, tile, scratch_.far.keys);
    values_ = pack_values(tile);
    weigh_cells();
    for (int i = 0; i < num_panels_; ++i) {
      if (near_seen_) add_to_dqueries(near_, scratch_.near, near_panels_, i);
      if (far_seen_) add_to_dqueries(far_, scratch_.far, far_panels_, i);
    }
    add_to_keys(scratch_.weights, scratch_.douts, scratch_.dout_pairs, douts_finite_, seen_panels_, forward_.head_dim_v,
                dv_, ld_v_);
    if (near_seen_) {
      add_to_keys(scratch_.near.dscores, scratch_.near.queries, scratch_.near.query_pairs, queries_finite_,
                  near_panels_, forward_.head_dim, dk_, ld_);
    }
    if (far_seen_) {
      add_to_keys(scratch_.far.dscores, scratch_.far.queries, scratch_.far.query_pairs, far_queries_finite_,
                  far_panels_, forward_.head_dim, dk2_, ld_);
    }
  }

  // Packing -----------------------------------------------------------------------------------------------------------

  // Calls pack(source, cells), which returns whether all is finite, unless the cache has the tile.
  template <typename Pack>
  bool find_or_pack(const HeadsView& view, int64_t tile, const CellCache& cache, BFloat16*& cells, Pack&& pack) const {
    const int64_t slot = tile % cache.slots;
    cells = cache.data + slot * cache.slot_size;
    const BFloat16* src = key_row<BFloat16>(view, first_key_);
    TileCache::Owner& owner = cache.owners[slot];
    if (owner.rows != src || owner.num_rows != num_keys_) owner = {src, num_keys_, pack(src, cells)};
    return owner.finite;
  }

  TileKeys pack_keys(const HeadsView& view, int64_t tile, const CellCache& cache) const {
    const int64_t count = kKeyCells * steps_;
    BFloat16* cells;
    const bool all = find_or_pack(view, tile, cache, cells, [&](const BFloat16* src, BFloat16* to) {
      const bool finite = pack_key_rows(src, view.row_stride, num_keys_, forward_.head_dim, to);
      transpose_key_rows(to, forward_.head_dim, to + count * kCellSize);
      if (!finite) clear_what_is_not_finite(to + count * kCellSize, count);
      return finite;
    });
    return {cells, cells + count * kCellSize, all};
  }

  const BFloat16* pack_values(int64_t tile) const {
    BFloat16* cells;
    find_or_pack(forward_.v, tile, scratch_.values, cells, [&](const BFloat16* src, BFloat16* to) {
      return pack_key_rows(src, forward_.v.row_stride, num_keys_, forward_.head_dim_v, to);
    });
    return cells;
  }

  // P and dS ----------------------------------------------------------------------------------------------------------

  void weigh_cells() {
    Cell cells[kMostCells];
    const int num_cells = find_cells(cells);
    for (int i = 0; i < num_cells; ++i) {
      const Cell& cell = cells[i];
      fetch_sums(i, num_cells);
      multiply_cell(product_of(cell));
      if (cell.clear) {
        weigh_clear_cell(panels_[cell.panel], factor_, scratch_.scores, scratch_.weights + place_of(cell),
                         gradient_of(cell, cell.kind == StripKind::kFar ? scratch_.far : scratch_.near));
      } else {
        weigh_edges(cell);
      }
    }
  }

  int find_cells(Cell* cells) {
    for (int keys = 0; keys < kKeyCells; ++keys) seen_panels_[keys] = near_panels_[keys] = far_panels_[keys] = 0;
    const bool plain = forward_.softcap == 0.0f && forward_.dropout.rng_state == nullptr;
    int count = 0;
    for (int keys = 0; keys * kCell < num_keys_; ++keys) {
      const int32_t first = first_key_ + keys * kCell, end = first + kCell;
      for (int i = 0; i < num_panels_; ++i) {
        const PanelMask& mask = panels_[i].mask;
        if (mask.begin[0] >= end || mask.end[kCell - 1] <= first) continue;
        if (has_terms_ && panels_[i].tile_seen == TileSeen::kNone) continue;
        const bool terms = has_terms_ && panels_[i].tile_seen == TileSeen::kSome;
        const StripKind kind = !piecewise_ || first >= mask.far_end[kCell - 1] ? StripKind::kNear
                               : end > mask.far_end[0]                         ? StripKind::kBorder
                                                                               : StripKind::kFar;
        const bool clear =
            plain && !terms && kind != StripKind::kBorder && mask.begin[kCell - 1] <= first && end <= mask.end[0];
        cells[count++] = {i, keys, kind, clear};
        seen_panels_[keys] |= 1u << i;
        if (kind != StripKind::kFar) near_panels_[keys] |= 1u << i;
        if (kind != StripKind::kNear) far_panels_[keys] |= 1u << i;
      }
    }
    return count;
  }

  CellProduct product_of(const Cell& cell) const {
    const bool far = cell.kind == StripKind::kFar;
    return {(far ? far_ : near_).rows + cell.keys * steps_ * kCellSize,
            (far ? scratch_.far : scratch_.near).queries + cell.panel * steps_ * kCellSize,
            values_ + cell.keys * steps_v_ * kCellSize,
            scratch_.douts + cell.panel * steps_v_ * kCellSize,
            steps_,
            steps_v_,
            scratch_.scores.scores,
            scratch_.scores.dweights};
  }

  int64_t place_of(const Cell& cell) const { return (cell.keys * num_panels_ + cell.panel) * kCellSize; }
  CellGradient gradient_of(const Cell& cell, const CellPair& pair) const {
    return {pair.dscores + place_of(cell), pair.dscore_pairs + place_of(cell)};
  }

  void weigh_edges(const Cell& cell) {
    const CellScores& from = scratch_.scores;
    const BackwardPanel& panel = panels_[cell.panel];
    const bool terms = has_terms_ && panel.tile_seen == TileSeen::kSome,
               dropout = forward_.dropout.rng_state != nullptr;
    float* far_scores = from.dweights;
    if (cell.kind == StripKind::kBorder) {
      far_scores = from.far_scores;
      multiply_cells(far_.rows + cell.keys * steps_ * kCellSize, scratch_.far.queries + cell.panel * steps_ * kCellSize,
                     steps_, far_scores);
    }
    const int64_t first = first_key_ + cell.keys * kCell, rest = first_key_ + num_keys_ - first;
    const int64_t num_keys = rest < kCell ? rest : kCell;
    if (terms) terms_.write(panel.columns, columns_of(panel), first, num_keys, scratch_.terms);
    if (dropout) {
      write_dropout(forward_, part_.sequence_index, panel.columns, columns_of(panel), first, num_keys,
                    scratch_.dropout);
    }
    const GradientContext context = {
        .near = {},
        .far = {},
        .values = {},
        .piecewise = piecewise_,
        .first_key = static_cast<int32_t>(first),
        .softcap_factor = softcap_factor_,
        .factor = factor_,
        .weights = from.scores,
        .near_dscores = from.dweights,
        .far_dscores = far_scores,
        .terms = terms ? scratch_.terms : nullptr,
        .dropout = dropout ? scratch_.dropout : nullptr,
        .additive = ScoreTerms::are_additive(forward_),
        .unit = unit_,
    };
    weigh_edge_cell(context, panel, cell.kind, static_cast<int>(num_keys), scratch_.weights + place_of(cell),
                    gradient_of(cell, scratch_.near), gradient_of(cell, scratch_.far));
  }

  // Products ----------------------------------------------------------------------------------------------------------

  void add_to_dqueries(const TileKeys& keys, const CellPair& pair, const Panels& panels, int panel) const {
    unsigned seen = 0;
    for (int i = 0; i < kKeyCells; ++i) seen |= (panels[i] >> panel & 1u) << i;
    if (seen == 0) return;
    const int64_t stride = num_panels_ * kCellSize;
    float* sums = pair.dqueries + panel * dqueries_of_panel();
    add_cells_to_dqueries(keys.transposed, pair.dscore_pairs + panel * kCellSize, stride, seen, forward_.head_dim,
                          sums);
    if (keys.finite) return;
    for (int64_t key = 0; key < num_keys_; ++key) {
      if ((seen >> key / kCell & 1u) == 0) continue;
      const BFloat16* dscores = pair.dscores + key / kCell * stride + panel * kCellSize;
      for (int64_t d = 0; d < forward_.head_dim; ++d) {
        const BFloat16 x =
            keys.rows[(key / kCell * steps_ + d / kCell) * kCellSize + in_rows_cell(key % kCell, d % kCell)];
        if (is_finite(x)) continue;
        add_not_finite(
            x, all_seen_, [&](int column) { return dscores[in_rows_cell(key % kCell, column)]; },
            [&](int column) -> float& { return sums[d * kPanel + column]; });
      }
    }
  }

  // dV or dK of the tile, from P or dS and the block's rows of dO or Q.
  void add_to_keys(const BFloat16* scores, const BFloat16* transposed, const BFloat16* pairs, bool finite,
                   const Panels& panels, int64_t dim, float* sums, int64_t ld) const {
    const int64_t steps = cells_of(dim), stride = steps * kCellSize, row = num_panels_ * kCellSize;
    for (int64_t first = 0; first < num_panels_; first += kPanelsAtOnce) {
      for (int64_t step = 0; step < steps; ++step) {
        const bool whole = dim - step * kCell > kTileCols;
        for (int keys = 0; keys < kKeyCells; ++keys) {
          const unsigned seen = panels[keys] & kSomePanels << first;
          if (seen == 0) continue;
          (whole ? add_cells_to_keys<2> : add_cells_to_keys<1>)(scores + keys * row, pairs + step * kCellSize, stride,
                                                                seen, sums + keys * kCell * ld + step * kCell, ld);
        }
      }
    }
    if (finite) return;
    for (int64_t column = 0; column < num_panels_ * kCell; ++column) {
      const int64_t panel = column / kCell;
      for (int64_t d = 0; d < dim; ++d) {
        const BFloat16 x =
            transposed[(panel * steps + d / kCell) * kCellSize + in_pairs_cell(d % kCell, column % kCell)];
        if (is_finite(x)) continue;
        for (int keys = 0; keys < kKeyCells; ++keys) {
          if ((panels[keys] >> panel & 1u) == 0) continue;
          const BFloat16* cell = scores + keys * row + panel * kCellSize;
          add_not_finite(
              x, all_seen_, [&](int key) { return cell[in_rows_cell(key, column % kCell)]; },
              [&](int key) -> float& { return sums[(keys * kCell + key) * ld + d]; });
        }
      }
    }
  }

  // Of the tile.
  TileKeys near_{}, far_{};
  const BFloat16* values_ = nullptr;
  Panels seen_panels_, near_panels_, far_panels_;
};

}  // namespace flagattn::FLAGATTN_ISA
