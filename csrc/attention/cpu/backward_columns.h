// The columns of one block of the attention backward: what they see and their statistics; and on the way out their dQ.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_panel.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/score_terms.h"
#include "attention/mask.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardColumns {
 protected:
  BackwardColumns(const AttentionBackwardParams& params, const BackwardPart& part)
      : params_(params),
        forward_(params.forward),
        part_(part),
        group_(params.forward.heads_q / params.forward.heads_k),
        piecewise_(params.forward.is_piecewise()) {
    if (ScoreTerms::exist(forward_)) {
      terms_ = ScoreTerms(forward_, part.sequence_index, part.sequence.seqlen_q, part.sequence.seqlen_k);
      has_terms_ = !terms_.empty();
    }
    softcap_factor_ = forward_.softcap > 0.0f ? forward_.softmax_scale / forward_.softcap : 0.0f;
    factor_ = forward_.softcap > 0.0f ? forward_.softcap : forward_.softmax_scale;
    if (ScoreTerms::are_additive(forward_)) {
      unit_ = factor_;
      factor_ = 1.0f;
    }
  }

  // The block begins `first` columns into the part and has at most `most` of them.
  void start_columns(int64_t first, int64_t most) {
    const int64_t rest = part_.num_columns - first;
    first_column_ = part_.first_column + first;
    num_columns_ = rest < most ? rest : most;
  }

  // `first` is counted from the block's first column.
  void start_panel(BackwardPanel& panel, int64_t first, int num_vectors) const {
    panel.first_column = first;
    panel.num_vectors = num_vectors;
    number_columns(panel);
    start_masks(panel);
    start_statistics(panel);
  }

  // Writes the block's dQ, or dQ2.
  template <typename T>
  void write_dqueries(const HeadsView& view, const float* dqueries, int64_t panel_stride) const {
    float factors[kPanel];
    for (float& factor : factors) factor = forward_.softmax_scale;
    for (int64_t i = 0; i < num_panels_; ++i) {
      const BackwardPanel& panel = panels_[i];
      T* rows[kPanel] = {};
      for (int c = 0; c < columns_of(panel); ++c) {
        T* row = row_of<T>(view, panel.columns[c]);
        if (panel.lse[c] == kNoWeight) {
          std::memset(row, 0, static_cast<size_t>(forward_.head_dim) * sizeof(T));
        } else {
          rows[c] = row;
        }
      }
      unpack_columns(dqueries + i * panel_stride, forward_.head_dim, factors, rows);
    }
  }

  int columns_of(const BackwardPanel& panel) const {
    const int64_t rest = num_columns_ - panel.first_column;
    const int most = panel.num_vectors * F32::kLanes;
    return rest < most ? static_cast<int>(rest) : most;
  }

  template <typename T>
  struct PanelRows {
    const T* at[kPanel];
  };
  template <typename T>
  PanelRows<T> rows_of(const HeadsView& view, const BackwardPanel& panel) const {
    alignas(64) static constexpr float kZeros[kMostHeadDim] = {};
    PanelRows<T> rows;
    for (int c = 0; c < kPanel; ++c) {
      const bool used = panel.lse[c] != kNoWeight;
      rows.at[c] = used ? row_of<const T>(view, panel.columns[c]) : reinterpret_cast<const T*>(kZeros);
    }
    return rows;
  }

  // A sink is a key of weight exp(sink - lse) whose dP is 0, since its value is. Always inline: GCC 12's summaries of
  // what functions write (-fipa-modref, which -fipa-pure-const acts on) take the call for one without effect, and it is
  // dropped; without either pass it is not.
  FLAGATTN_INLINE void write_sink_shares(const BackwardPanel& panel) const {
    for (int c = 0; c < columns_of(panel); ++c) {
      if (panel.lse[c] == kNoWeight) continue;
      const Column& at = panel.columns[c];
      const double weight = ::exp(static_cast<double>(forward_.sinks[at.head]) - panel.lse[c]);
      statistic_at(params_.dsink_shares, at) = static_cast<float>(-weight * panel.delta[c]);
    }
  }

  const AttentionBackwardParams& params_;
  const AttentionParams& forward_;
  const BackwardPart& part_;
  const int64_t group_;
  const bool piecewise_;
  ScoreTerms terms_;
  bool has_terms_ = false;
  float softcap_factor_;  // scores become tanh(softcap_factor * score) where it is not 0
  float factor_;          // of the exponent
  float unit_ = 1.0f;     // of scores before biases are added

  // Of the block.
  int64_t num_columns_ = 0;
  int64_t num_panels_ = 0;
  BackwardPanel* panels_ = nullptr;

 private:
  template <typename T>
  T* row_of(const HeadsView& view, const Column& column) const {
    return static_cast<T*>(view.data) + part_.sequence.batch * view.batch_stride +
           (part_.sequence.first_q + column.row) * view.row_stride + column.head * view.head_stride;
  }
  float statistic_of(const RowsView& view, const Column& column) const { return statistic_at(view, column); }
  float& statistic_at(const RowsView& view, const Column& column) const {
    return view.data[part_.sequence.batch * view.batch_stride + column.head * view.head_stride +
                     part_.sequence.first_q + column.row];
  }
  // Counted up from the first: a division per panel instead of several per column. Columns that fill up the last vector
  // repeat the last one.
  void number_columns(BackwardPanel& panel) const {
    const int64_t number = first_column_ + panel.first_column, first_head = part_.head_k * group_;
    Column next{number / group_, first_head + number % group_};
    for (int c = 0; c < kPanel; ++c) {
      panel.columns[c] = next;
      if (c + 1 >= columns_of(panel)) continue;
      if (++next.head == first_head + group_) next = {next.row + 1, first_head};
    }
  }

  void start_masks(BackwardPanel& panel) const {
    const MaskShape shape{part_.sequence.seqlen_q, part_.sequence.seqlen_k, forward_.mask};
    for (int c = 0; c < kPanel; ++c) {
      // Columns that fill up the last vector add no edge; further vectors see nothing.
      const int64_t row = panel.columns[c].row;
      KeyRange keys = shape.keys_of_row(row);
      if (ScoreTerms::exist(forward_)) keys = intersection(keys, terms_.kept());
      const bool used = c < panel.num_vectors * F32::kLanes;
      panel.mask.begin[c] = used ? static_cast<int32_t>(keys.begin) : 0;
      panel.mask.end[c] = used ? static_cast<int32_t>(keys.end) : 0;
      // Where all keys are far, so are the zeros that fill up the last strip: the tile's near keys are not even packed.
      const int64_t far_end = piecewise_ ? shape.far_end(row, forward_.dist_threshold) : 0;
      const int64_t seqlen_k = part_.sequence.seqlen_k;
      panel.mask.far_end[c] =
          static_cast<int32_t>(far_end < seqlen_k ? far_end : round_up_to(seqlen_k, kBackwardKeyTile));
    }
  }

  // A column whose LSE is -inf takes no gradient: its operands are taken as zero, whatever they hold.
  void start_statistics(BackwardPanel& panel) const {
    for (int c = 0; c < kPanel; ++c) {
      panel.lse[c] = kNoWeight;
      panel.delta[c] = 0.0f;
      if (c >= columns_of(panel)) continue;
      const Column& at = panel.columns[c];
      const float lse = statistic_of(forward_.lse, at);
      if (forward_.sinks != nullptr) statistic_at(params_.dsink_shares, at) = 0.0f;
      if (lse == -std::numeric_limits<float>::infinity()) continue;
      panel.lse[c] = lse;
      if (params_.dlse.data != nullptr) panel.delta[c] = statistic_of(params_.dlse, at);
    }
  }

  int64_t first_column_ = 0;  // of the block, in the sequence
};

}  // namespace flagattn::FLAGATTN_ISA
