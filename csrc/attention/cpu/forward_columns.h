// The columns (query rows of one group's heads) of neighbouring items: where their rows lie, what they see, and the way
// of queries and results into panels and back.
#pragma once

#include <cstdint>

#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/score_factors.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/softmax.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

class ForwardColumns {
 public:
  // `query_floats`: of a panel.
  ForwardColumns(const AttentionParams& params, const ForwardScratch& scratch, int64_t query_floats)
      : params_(params),
        scratch_(scratch),
        group_(params.heads_q / params.heads_k),
        query_floats_(query_floats),
        head_dim_(padded_dim(params.head_dim)),
        head_dim_v_(padded_dim(params.head_dim_v)) {
    const ScoreFactors factors = score_factors(params, ScoreTerms::are_additive(params));
    query_factor_ = factors.query;
    softcap_factor_ = factors.softcap;
    unit_ = factors.unit;
    natural_factor_ = factors.natural;
    factor_ = factors.exponent;
  }

 protected:
  struct Columns {
    Column at[kPanel];
  };
  Columns columns_at(int64_t panel) const {
    return columns_from(item_.first_column + panel * kPanel, item_.head_k * group_);
  }
  // Counted up from the first: a division per panel instead of several per column.
  Columns columns_from(int64_t number, int64_t first_head) const {
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
  static T* row_of(const HeadsView& view, const Sequence& sequence, const Column& column) {
    return static_cast<T*>(view.data) + sequence.batch * view.batch_stride +
           (sequence.first_q + column.row) * view.row_stride + column.head * view.head_stride;
  }
  template <typename T>
  T* row_of(const HeadsView& view, const Column& column) const {
    return row_of<T>(view, sequence_, column);
  }

  // Where panels of an item are done one after another, the second overwrites the first.
  float* queries_of(int64_t panel) const { return scratch_.queries + place_of(panel) * query_floats_; }
  float* far_queries_of(int64_t panel) const { return scratch_.far_queries + place_of(panel) * query_floats_; }
  float* outputs_of(int64_t panel) const { return scratch_.outputs + place_of(panel) * output_size(); }
  int64_t output_size() const { return head_dim_v_ * kPanel; }
  void clear_panel(float* outputs) const {
    for (int64_t i = 0; i < output_size(); i += F32::kLanes) F32::zero().store(outputs + i);
  }

  template <typename Products, typename T>
  void pack_queries(const HeadsView& view, const Columns& columns, int count, float* dst) const {
    const T* rows[kPanel] = {};
    for (int c = 0; c < count; ++c) rows[c] = row_of<const T>(view, columns.at[c]);
    Products::pack_queries(rows, params_.head_dim, query_factor_, dst);
  }

  // The rows of the panel of columns from item.first_column on: of the queries, the outputs, or both.
  void list_rows(const ForwardItem& item, const Sequence& sequence, bool queries, bool outputs, RowList& list) const {
    const Columns columns = columns_from(item.first_column, item.head_k * group_);
    const int64_t rest = sequence.seqlen_q * group_ - item.first_column;
    const int count = static_cast<int>(rest < kPanel ? rest : kPanel);
    dispatch(params_.dtype, [&]<typename T>(T) {
      const int64_t bytes = params_.head_dim * sizeof(T), bytes_v = params_.head_dim_v * sizeof(T);
      const auto add = [&](const HeadsView& view, int64_t size) {
        for (int c = 0; c < count; ++c) list.add(row_of<T>(view, sequence, columns.at[c]), size);
      };
      if (queries) add(params_.q, bytes);
      if (queries && params_.is_piecewise()) add(params_.q2, bytes);
      if (outputs) add(params_.out, bytes_v);
    });
  }

  template <typename Products>
  void start_panel(int64_t panel) {
    const Columns columns = columns_at(panel);
    const int count = columns_of(panel);
    Products::dispatch(params_.dtype, [&]<typename T>(T) {
      pack_queries<Products, T>(params_.q, columns, count, queries_of(panel));
      if (params_.is_piecewise()) pack_queries<Products, T>(params_.q2, columns, count, far_queries_of(panel));
    });
    reset(scratch_.statistics[panel]);
  }

  void start_mask(int64_t panel) {
    const MaskShape shape{sequence_.seqlen_q, sequence_.seqlen_k, params_.mask};
    const Columns columns = columns_at(panel);
    const int count = columns_of(panel);
    PanelMask& mask = scratch_.masks[panel];
    for (int c = 0; c < kPanel; ++c) {
      // Columns that fill up the last vector repeat the last one's mask and add no edge; further vectors see nothing.
      const int64_t row = columns.at[c < count ? c : count - 1].row;
      KeyRange keys = shape.keys_of_row(row);
      if (ScoreTerms::exist(params_)) keys = intersection(keys, terms_.kept());
      const bool used = c / F32::kLanes * F32::kLanes < count;
      mask.begin[c] = static_cast<int32_t>(used || keys.empty() ? keys.begin : keys.end);
      mask.end[c] = static_cast<int32_t>(keys.end);
      mask.far_end[c] = params_.is_piecewise() ? static_cast<int32_t>(shape.far_end(row, params_.dist_threshold)) : 0;
    }
  }

  // The keys that some column of the panels [first, end) sees.
  KeyRange keys_of_panels(int64_t first, int64_t end) const {
    return {scratch_.masks[first].begin[0], scratch_.masks[end - 1].end[kPanel - 1]};
  }

  // Results -----------------------------------------------------------------------------------------------------------

  void finish_panel(int64_t panel) const {
    const PanelStatistics& statistics = scratch_.statistics[panel];
    if (statistics.fresh) clear_panel(outputs_of(panel));
    const Columns columns = columns_at(panel);
    alignas(64) float normalisers[kPanel], lses[kPanel];
    for (int c = 0; c < kPanel; ++c) {
      const RowResult result = params_.sinks == nullptr ? row_result(statistics, c, natural_factor_)
                                                        : row_result_with_sink(statistics, c, natural_factor_,
                                                                               params_.sinks[columns.at[c].head]);
      normalisers[c] = result.normaliser;
      lses[c] = result.lse;
    }
    dispatch(params_.dtype, [&]<typename T>(T) {
      T* rows[kPanel] = {};
      for (int c = 0; c < columns_of(panel); ++c) rows[c] = row_of<T>(params_.out, columns.at[c]);
      unpack_columns(outputs_of(panel), params_.head_dim_v, normalisers, rows);
    });
    for (int c = 0; c < columns_of(panel); ++c) {
      const Column& at = columns.at[c];
      params_.lse.data[sequence_.batch * params_.lse.batch_stride + at.head * params_.lse.head_stride +
                       sequence_.first_q + at.row] = lses[c];
    }
  }

  int64_t place_of(int64_t panel) const { return one_by_one_ ? 0 : panel; }

  const AttentionParams& params_;
  const ForwardScratch scratch_;
  const int64_t group_;
  const int64_t query_floats_;
  const int64_t head_dim_, head_dim_v_;  // padded
  float query_factor_, softcap_factor_;
  double natural_factor_;
  float factor_;       // to base 2
  float unit_ = 1.0f;  // of scores before biases are added

  ForwardItem item_;  // the first of those at work
  Sequence sequence_;
  int64_t num_columns_;      // of all of them
  bool one_by_one_ = false;  // the panels of the item at work: each is finished before the next one starts

  ScoreTerms terms_;  // of the sequence
};

}  // namespace flagattn::FLAGATTN_ISA
