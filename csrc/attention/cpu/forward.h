// One work item of the attention forward: some columns (query rows of one group's heads) against all the keys they see.
#pragma once

#include <cstdint>

#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/outputs.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/scores.h"
#include "attention/cpu/softmax.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

class ForwardWorker {
 public:
  ForwardWorker(const AttentionParams& params, const ForwardSchedule& schedule, const ForwardScratch& scratch)
      : params_(params),
        schedule_(schedule),
        scratch_(scratch),
        group_(params.heads_q / params.heads_k),
        head_dim_(padded_dim(params.head_dim)),
        head_dim_v_(padded_dim(params.head_dim_v)) {
    // A weight is exp(natural_factor_ * s(score)). The sign of the scale goes into the queries: the factor stays
    // positive, so that the largest score has the largest weight.
    const float scale = params.softmax_scale;
    query_factor_ = scale > 0.0f ? 1.0f : scale < 0.0f ? -1.0f : 0.0f;
    const float magnitude = scale == 0.0f ? 1.0f : scale * query_factor_;
    softcap_factor_ = params.softcap > 0.0f ? magnitude / params.softcap : 0.0f;
    natural_factor_ = params.softcap > 0.0f ? params.softcap : magnitude;
    factor_ = static_cast<float>(natural_factor_ * 1.44269504088896340736);
  }

  void run(int64_t index) {
    item_ = schedule_.item(index);
    sequence_ = sequence_of(params_, item_.sequence);
    const int64_t columns = sequence_.seqlen_q * group_ - item_.first_column;
    if (columns <= 0) return;
    num_columns_ = columns < schedule_.config.columns_per_item ? columns : schedule_.config.columns_per_item;
    num_panels_ = (num_columns_ + kPanel - 1) / kPanel;

    KeyRange keys = start_panels();
    for (int64_t first = keys.begin / kCpuKeyTile * kCpuKeyTile; first < keys.end; first += kCpuKeyTile) {
      run_tile(first);
    }
    for (int64_t panel = 0; panel < num_panels_; ++panel) finish_panel(panel);
  }

 private:
  // Columns of a panel ------------------------------------------------------------------------------------------------

  struct Column {
    int64_t row;   // of the sequence
    int64_t head;  // of q
  };
  struct Columns {
    Column at[kPanel];
  };
  // Counted up from the first: a division per panel instead of several per column.
  Columns columns_at(int64_t panel) const {
    const int64_t number = item_.first_column + panel * kPanel, first_head = item_.head_k * group_;
    Columns columns;
    Column next{number / group_, first_head + number % group_};
    for (Column& column : columns.at) {
      column = next;
      if (++next.head == first_head + group_) next = {next.row + 1, first_head};
    }
    return columns;
  }
  int columns_of(int64_t panel) const {
    const int64_t rest = num_columns_ - panel * kPanel;
    return static_cast<int>(rest < kPanel ? rest : kPanel);
  }

  template <typename T>
  T* row_of(const HeadsView& view, const Column& column) const {
    return static_cast<T*>(view.data) + sequence_.batch * view.batch_stride +
           (sequence_.first_q + column.row) * view.row_stride + column.head * view.head_stride;
  }

  int64_t query_size() const { return head_dim_ * kPanel; }
  int64_t output_size() const { return head_dim_v_ * kPanel; }
  void clear_panel(float* outputs) const {
    for (int64_t i = 0; i < output_size(); i += F32::kLanes) F32::zero().store(outputs + i);
  }

  template <typename T>
  void pack_queries(const HeadsView& view, const Columns& columns, int count, float* dst) const {
    const T* rows[kPanel] = {};
    for (int c = 0; c < count; ++c) rows[c] = row_of<const T>(view, columns.at[c]);
    pack_columns(rows, params_.head_dim, query_factor_, dst);
  }

  // Packs all panels; returns the keys that any column sees.
  KeyRange start_panels() {
    const MaskShape shape{sequence_.seqlen_q, sequence_.seqlen_k, params_.mask};
    for (int64_t panel = 0; panel < num_panels_; ++panel) {
      const Columns columns = columns_at(panel);
      const int count = columns_of(panel);
      dispatch(params_.dtype, [&]<typename T>(T) {
        pack_queries<T>(params_.q, columns, count, scratch_.queries + panel * query_size());
        if (params_.is_piecewise())
          pack_queries<T>(params_.q2, columns, count, scratch_.far_queries + panel * query_size());
      });
      PanelMask& mask = scratch_.masks[panel];
      for (int c = 0; c < kPanel; ++c) {
        // Columns that pad the panel repeat the last one's mask: they add no edge.
        const int64_t row = columns.at[c < count ? c : count - 1].row;
        const KeyRange keys = shape.keys_of_row(row);
        mask.begin[c] = static_cast<int32_t>(keys.begin);
        mask.end[c] = static_cast<int32_t>(keys.end);
        mask.far_end[c] = params_.is_piecewise() ? static_cast<int32_t>(shape.far_end(row, params_.dist_threshold)) : 0;
      }
      reset(scratch_.statistics[panel]);
      clear_panel(scratch_.outputs + panel * output_size());
    }
    return {scratch_.masks[0].begin[0], scratch_.masks[num_panels_ - 1].end[kPanel - 1]};
  }

  // One key tile ------------------------------------------------------------------------------------------------------

  template <typename T>
  const T* key_row(const HeadsView& view, int32_t key) const {
    return static_cast<const T*>(view.data) + sequence_.batch * view.batch_stride +
           (sequence_.first_k + key) * view.row_stride + item_.head_k * view.head_stride;
  }

  // The tile [first, first + num_keys). The border moves on with the columns: the last panel needs most far keys, the
  // first one most near keys.
  struct Tile {
    int32_t first, num_keys;
    bool any_near, any_far;
  };
  Tile tile_at(int64_t first) const {
    const int64_t rest = sequence_.seqlen_k - first;
    const auto num_keys = static_cast<int32_t>(rest < kCpuKeyTile ? rest : kCpuKeyTile);
    return {static_cast<int32_t>(first), num_keys,
            !params_.is_piecewise() || scratch_.masks[0].far_end[0] < first + num_keys,
            params_.is_piecewise() && scratch_.masks[num_panels_ - 1].far_end[kPanel - 1] > first};
  }

  // Keys that need neither widening nor padding are read where they lie, unless their rows are so far apart that every
  // panel would walk through a page per key.
  bool keys_in_place(const Tile& tile, const HeadsView& view) const {
    constexpr int64_t kMostStride = 2048 / sizeof(float);
    return params_.dtype == DType::kFloat32 && view.row_stride <= kMostStride && tile.num_keys % kMR == 0 &&
           params_.head_dim == head_dim_;
  }
  ScoreOperands key_operands(const Tile& tile, const HeadsView& view, const float* packed) const {
    if (keys_in_place(tile, view)) return {key_row<float>(view, tile.first), view.row_stride, nullptr};
    return {packed, head_dim_, nullptr};
  }

  void pack_tile(const Tile& tile) const {
    dispatch(params_.dtype, [&]<typename T>(T) {
      const auto pack_keys = [&](const HeadsView& view, float* dst) {
        pack_rows(key_row<T>(view, tile.first), view.row_stride, tile.num_keys, strip_ceil(tile.num_keys),
                  params_.head_dim, dst, head_dim_);
      };
      if (tile.any_near && !keys_in_place(tile, params_.k)) pack_keys(params_.k, scratch_.keys);
      if (tile.any_far && !keys_in_place(tile, params_.k2)) pack_keys(params_.k2, scratch_.far_keys);
      pack_strips(key_row<T>(params_.v, tile.first), params_.v.row_stride, tile.num_keys, params_.head_dim_v,
                  scratch_.values, strip_stride(kCpuKeyTile));
    });
  }

  void run_tile(int64_t first) {
    const Tile tile = tile_at(first);
    pack_tile(tile);
    values_ = {scratch_.values, strip_stride(kCpuKeyTile), tile.num_keys, head_dim_v_};
    // Where all columns see all keys, what is not finite belongs into every output.
    const PanelMask &front = scratch_.masks[0], &back = scratch_.masks[num_panels_ - 1];
    const bool all_seen = back.begin[kPanel - 1] <= tile.first && tile.first + tile.num_keys <= front.end[0];
    values_finite_ = all_seen || all_finite(values_);

    ScoreContext context{};
    context.head_dim = head_dim_;
    context.first_key = tile.first;
    context.num_keys = tile.num_keys;
    if (tile.any_near) context.near = key_operands(tile, params_.k, scratch_.keys);
    if (tile.any_far) context.far = key_operands(tile, params_.k2, scratch_.far_keys);
    context.piecewise = params_.is_piecewise();
    context.softcap_factor = softcap_factor_;
    for (int64_t panel = 0; panel < num_panels_; ++panel) run_panel(context, panel);
  }

  void run_panel(ScoreContext& context, int64_t panel) {
    const PanelMask& mask = scratch_.masks[panel];
    Run runs[kMostRuns];
    const int num_runs = cut_into_runs(mask, context.first_key, context.num_keys, runs);
    if (num_runs == 0) return;
    context.near.queries = scratch_.queries + panel * query_size();
    context.far.queries = scratch_.far_queries + panel * query_size();
    PanelStatistics& statistics = scratch_.statistics[panel];
    const F32 factor = F32::set1(factor_);

    F32 largest[kNV], rescale[kNV], partial[2][kNV];
    for (F32& most : largest) most = F32::set1(-std::numeric_limits<float>::infinity());
    clear(partial);
    for (int i = 0; i < num_runs; ++i) {
      with_vectors(runs[i], [&]<int NV>() { score_run<NV>(context, mask, runs[i], scratch_.scores, largest); });
    }
    raise_maximum(statistics, largest, factor, rescale);
    for (int i = 0; i < num_runs; ++i) {
      with_vectors(runs[i], [&]<int NV>() { weigh_run<NV>(statistics, runs[i], factor, scratch_.scores, partial); });
    }
    add_to_sum(statistics, partial);

    float* outputs = scratch_.outputs + panel * output_size();
    if (num_runs == 1 && values_finite_) {
      with_vectors(runs[0], [&]<int NV>() { add_whole_tile<NV>(values_, runs[0], scratch_.scores, rescale, outputs); });
      return;
    }
    clear_panel(scratch_.sums);
    for (int i = 0; i < num_runs; ++i) {
      if (values_finite_) {
        with_vectors(runs[i], [&]<int NV>() { add_run<NV>(values_, runs[i], scratch_.scores, scratch_.sums); });
      } else {
        add_seen_keys(values_, mask, context.first_key, runs[i], scratch_.scores, scratch_.sums);
      }
    }
    join_runs(scratch_.sums, head_dim_v_, rescale, outputs);
  }

  template <typename Body>
  static FLAGATTN_INLINE void with_vectors(const Run& run, Body&& body) {
    static_assert(kNV == 3);
    switch (run.num_vectors) {
      case 3:
        return body.template operator()<3>();
      case 2:
        return body.template operator()<2>();
      default:
        return body.template operator()<1>();
    }
  }

  // Results -----------------------------------------------------------------------------------------------------------

  void finish_panel(int64_t panel) const {
    const PanelStatistics& statistics = scratch_.statistics[panel];
    const Columns columns = columns_at(panel);
    alignas(64) float normalisers[kPanel];
    for (int c = 0; c < kPanel; ++c) normalisers[c] = normaliser(statistics, c);
    dispatch(params_.dtype, [&]<typename T>(T) {
      T* rows[kPanel] = {};
      for (int c = 0; c < columns_of(panel); ++c) rows[c] = row_of<T>(params_.out, columns.at[c]);
      unpack_columns(scratch_.outputs + panel * output_size(), params_.head_dim_v, normalisers, rows);
    });
    for (int c = 0; c < columns_of(panel); ++c) {
      const Column& at = columns.at[c];
      params_.lse.data[sequence_.batch * params_.lse.batch_stride + at.head * params_.lse.head_stride +
                       sequence_.first_q + at.row] = log_sum_exp(statistics, c, natural_factor_);
    }
  }

  const AttentionParams& params_;
  const ForwardSchedule& schedule_;
  const ForwardScratch scratch_;
  const int64_t group_;
  const int64_t head_dim_, head_dim_v_;  // padded
  float query_factor_, softcap_factor_;
  double natural_factor_;
  float factor_;  // to base 2

  ForwardItem item_;
  Sequence sequence_;
  int64_t num_columns_;
  int64_t num_panels_;

  ValueTile values_;  // the tile at work
  bool values_finite_;
};

}  // namespace flagattn::FLAGATTN_ISA
