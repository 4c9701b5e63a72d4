// The columns (query rows of one group's heads) of neighbouring items: where their rows lie, what they see, and the way
// of queries and results into panels and back.
#pragma once

#include <cstdint>

#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_factors.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/softmax.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

class ForwardColumns {
 public:
  ForwardColumns(const AttentionParams& params, const ForwardScratch& scratch)
      : params_(params),
        scratch_(scratch),
        group_(params.heads_q / params.heads_k),
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

  // Rows of one operand that will be read or written soon: they lie far apart, and what waits for them one by one waits
  // long.
  void prefetch_rows(const HeadsView& view, int64_t dim, int64_t panel) const {
    const Columns columns = columns_at(panel);
    dispatch(params_.dtype, [&]<typename T>(T) {
      constexpr int64_t kLine = 64 / sizeof(T);
      for (int c = 0; c < columns_of(panel); ++c) {
        const T* row = row_of<const T>(view, columns.at[c]);
        for (int64_t d = 0; d < dim; d += kLine) __builtin_prefetch(row + d, 0, 2);
      }
    });
  }

  void start_panel(int64_t panel) {
    const Columns columns = columns_at(panel);
    const int count = columns_of(panel);
    dispatch(params_.dtype, [&]<typename T>(T) {
      pack_queries<T>(params_.q, columns, count, scratch_.queries + panel * query_size());
      if (params_.is_piecewise())
        pack_queries<T>(params_.q2, columns, count, scratch_.far_queries + panel * query_size());
    });
    reset(scratch_.statistics[panel]);
    clear_panel(scratch_.outputs + panel * output_size());
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
      unpack_columns(scratch_.outputs + panel * output_size(), params_.head_dim_v, normalisers, rows);
    });
    for (int c = 0; c < columns_of(panel); ++c) {
      const Column& at = columns.at[c];
      params_.lse.data[sequence_.batch * params_.lse.batch_stride + at.head * params_.lse.head_stride +
                       sequence_.first_q + at.row] = lses[c];
    }
  }

  const AttentionParams& params_;
  const ForwardScratch scratch_;
  const int64_t group_;
  const int64_t head_dim_, head_dim_v_;  // padded
  float query_factor_, softcap_factor_;
  double natural_factor_;
  float factor_;       // to base 2
  float unit_ = 1.0f;  // of scores before biases are added

  ForwardItem item_;  // the first of those at work
  Sequence sequence_;
  int64_t num_columns_;  // of all of them

  ScoreTerms terms_;  // of the sequence
};

}  // namespace flagattn::FLAGATTN_ISA
