// The columns of one block of the attention backward with their rows packed both ways, as cells.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_cell_pack.h"
#include "attention/cpu/backward_cells.h"
#include "attention/cpu/backward_kernels.h"
#include "attention/cpu/backward_key_tile.h"
#include "attention/cpu/backward_pack.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardCellBlock : protected BackwardKeyTile {
 protected:
  BackwardCellBlock(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
                    const KeyGradients& share)
      : BackwardKeyTile(params, part, share),
        steps_(cells_of(forward_.head_dim)),
        steps_v_(cells_of(forward_.head_dim_v)),
        block_columns_(
            cell_block_columns(part.num_columns, most_cell_columns(forward_.head_dim, forward_.head_dim_v))) {
    carve_cells(forward_, block_columns_, static_cast<char*>(scratch), scratch_);
    panels_ = scratch_.panels;
  }

  // Packs the block that begins `first` columns into the part.
  void start_block(int64_t first) {
    start_columns(first, block_columns_);
    num_panels_ = cells_of(num_columns_);
    queries_finite_ = far_queries_finite_ = douts_finite_ = true;
    for (int64_t i = 0; i < num_panels_; ++i) {
      BackwardPanel& panel = panels_[i];
      start_panel(panel, i * kCell, kCell / F32::kLanes);
      start_rows(panel, i);
      if (forward_.sinks != nullptr) write_sink_shares(panel);
    }
    const auto floats = static_cast<size_t>(num_panels_ * dqueries_of_panel());
    std::memset(scratch_.near.dqueries, 0, floats * sizeof(float));
    if (piecewise_) std::memset(scratch_.far.dqueries, 0, floats * sizeof(float));
  }

  int64_t dqueries_of_panel() const { return steps_ * kCell * kPanel; }

  const int64_t steps_, steps_v_;  // cells of dims
  const int64_t block_columns_;
  CellScratch scratch_;
  bool queries_finite_ = true, far_queries_finite_ = true, douts_finite_ = true;

 private:
  void start_rows(BackwardPanel& panel, int64_t index) {
    const auto pack = [&](const PanelRows<BFloat16>& rows, int64_t dim, BFloat16* transposed, BFloat16* pairs) {
      const int64_t first = index * cells_of(dim) * kCellSize;
      const bool finite = pack_panel(rows.at, dim, transposed + first, pairs + first);
      if (!finite) clear_what_is_not_finite(pairs + first, cells_of(dim));
      return finite;
    };
    const PanelRows<BFloat16> douts = rows_of<BFloat16>(params_.dout, panel),
                              outs = rows_of<BFloat16>(forward_.out, panel);
    fetch_rows(douts.at, kCell, forward_.head_dim_v);
    queries_finite_ &=
        pack(rows_of<BFloat16>(forward_.q, panel), forward_.head_dim, scratch_.near.queries, scratch_.near.query_pairs);
    fetch_rows(outs.at, kCell, forward_.head_dim_v);
    douts_finite_ &= pack(douts, forward_.head_dim_v, scratch_.douts, scratch_.dout_pairs);
    if (piecewise_) {
      far_queries_finite_ &= pack(rows_of<BFloat16>(forward_.q2, panel), forward_.head_dim, scratch_.far.queries,
                                  scratch_.far.query_pairs);
    }
    for (int tile = 0; tile < kCell / kTileCols; ++tile) subtract_from_outs(panel, index, tile * kTileCols, outs.at);
  }

  // delta = rowsum(dO * O) - delta for the 16 columns of a tile: the diagonal of a product, so that it is summed as dP
  // is.
  void subtract_from_outs(BackwardPanel& panel, int64_t index, int column, const BFloat16* const* outs) const {
    alignas(64) BFloat16 rows[kMostHeadDim / kTileDepth * kTileSize];
    alignas(64) float products[kTileRows * kTileCols];
    for (int64_t step = 0; step < steps_v_; ++step) {
      for (int i = 0; i < kTileRows; ++i) {
        copy_row(outs[column + i] + step * kTileDepth, forward_.head_dim_v - step * kTileDepth,
                 rows + step * kTileSize + i * kTileDepth);
      }
    }
    Tile<0>::zero();
    for (int64_t step = 0; step < steps_v_; ++step) {
      Tile<4>::load(rows + step * kTileSize, kTileDepth);
      Tile<6>::load(scratch_.douts + (index * steps_v_ + step) * kCellSize + column / kTileCols * kTileSize,
                    kTileDepth);
      Tile<0>::add_product<4, 6>();
    }
    Tile<0>::store(products, kTileCols);
    for (int i = 0; i < kTileRows; ++i) {
      float& delta = panel.delta[column + i];
      delta = products[i * kTileCols + i] - delta;
    }
  }
};

}  // namespace flagattn::FLAGATTN_ISA
