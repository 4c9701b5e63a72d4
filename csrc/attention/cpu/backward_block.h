// The columns of one block of the attention backward with their rows packed both ways, in fp32.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_kernels.h"
#include "attention/cpu/backward_key_tile.h"
#include "attention/cpu/backward_pack.h"
#include "attention/cpu/backward_scores.h"
#include "attention/cpu/backward_scratch.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardBlock : protected BackwardKeyTile {
 protected:
  BackwardBlock(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
                const KeyGradients& share)
      : BackwardKeyTile(params, part, share) {
    const int64_t columns =
        backward_block_columns(part.num_columns, backward_most_columns(forward_.head_dim, forward_.head_dim_v));
    scratch_ = carve(forward_, columns, static_cast<char*>(scratch), layout_);
    panels_ = scratch_.panels;
  }

  // Packs the block that begins `first` columns into the part.
  template <typename T>
  void start_block(int64_t first) {
    start_columns(first, layout_.columns);
    const Strips panels((num_columns_ + F32::kLanes - 1) / F32::kLanes);
    num_panels_ = panels.count;
    queries_finite_ = far_queries_finite_ = douts_finite_ = true;
    for (int64_t i = 0; i < num_panels_; ++i) {
      BackwardPanel& panel = panels_[i];
      start_panel(panel, panels.first(i) * F32::kLanes, panels.width(i));
      start_rows<T>(panel, i);
      if (forward_.sinks != nullptr) write_sink_shares(panel);
    }
    const int64_t floats = num_panels_ * kPanel * forward_.head_dim;
    std::memset(scratch_.near.dqueries, 0, static_cast<size_t>(floats) * sizeof(float));
    if (piecewise_) std::memset(scratch_.far.dqueries, 0, static_cast<size_t>(floats) * sizeof(float));
  }

  BackwardLayout layout_;
  BackwardScratch scratch_;
  bool queries_finite_ = true, far_queries_finite_ = true, douts_finite_ = true;

 private:
  template <typename T>
  void start_rows(BackwardPanel& panel, int64_t index) {
    const int64_t dim = forward_.head_dim, dim_v = forward_.head_dim_v;
    const int used = panel.num_vectors * F32::kLanes;
    const auto pack = [&](const PanelRows<T>& rows, int64_t dims, float* transposed, float* strips) {
      bool finite = true;
      for (int v = 0; v < panel.num_vectors; ++v) {
        finite &= pack_both_ways(rows.at + first_column(v), dims, transposed + index * kPanel * dims + first_column(v),
                                 strips, panel.first_column + first_column(v), layout_.columns);
      }
      return finite;
    };
    const PanelRows<T> douts = rows_of<T>(params_.dout, panel), outs = rows_of<T>(forward_.out, panel);
    fetch_rows(douts.at, used, dim_v);
    queries_finite_ &= pack(rows_of<T>(forward_.q, panel), dim, scratch_.near.queries, scratch_.near.query_rows);
    fetch_rows(outs.at, used, dim_v);
    douts_finite_ &= pack(douts, dim_v, scratch_.douts, scratch_.dout_rows);
    if (piecewise_) {
      far_queries_finite_ &= pack(rows_of<T>(forward_.q2, panel), dim, scratch_.far.queries, scratch_.far.query_rows);
    }
    for (int v = 0; v < panel.num_vectors; ++v) {
      float* delta = panel.delta + first_column(v);
      const float* transposed = scratch_.douts + index * kPanel * dim_v + first_column(v);
      (dot_columns(outs.at + first_column(v), dim_v, transposed) - F32::load(delta)).store(delta);
    }
  }
};

}  // namespace flagattn::FLAGATTN_ISA
