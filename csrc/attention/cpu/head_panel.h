// Panels of a single query head, for passes that sum over rows and heads instead of keys: the gradient of a bias and
// the column sums of the probabilities. Simple where the forward and the backward are fast: keys are packed per panel.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "arch/simd.h"
#include "attention/cpu/dropout.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/scores.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int64_t kPassTile = 64;    // keys of a tile
inline constexpr int64_t kPassChunk = 512;  // keys whose sums one item keeps

// As the LSE of a column without weights: exp(x - kWeightless) is 0 for every finite x.
inline constexpr float kWeightless = 1e30f;

struct HeadPanelScratch {
  float *queries, *keys, *scores;          // [dim][kPanel], [kPassTile][dim], [kPassTile][kPanel]
  float *douts, *outs, *values, *dscores;  // the same of dO, O, V and dP
  float *terms, *dropout;                  // as scores
  float* sums;                             // [keys][kPanel]

  // Lays the scratch out from `base` on; null only measures. Returns the number of floats.
  static int64_t carve(const AttentionParams& params, float* base, HeadPanelScratch& scratch) {
    int64_t at = 0;
    const auto take = [&](float*& start, int64_t count) {
      start = base + at;
      at += (count + 15) / 16 * 16;
    };
    const int64_t dim = padded_dim(params.head_dim), dim_v = padded_dim(params.head_dim_v);
    take(scratch.queries, dim * kPanel);
    take(scratch.keys, kPassTile * dim);
    take(scratch.scores, kPassTile * kPanel);
    take(scratch.douts, dim_v * kPanel);
    take(scratch.outs, dim_v * kPanel);
    take(scratch.values, kPassTile * dim_v);
    take(scratch.dscores, kPassTile * kPanel);
    take(scratch.terms, kPassTile * kPanel);
    take(scratch.dropout, kPassTile * kPanel);
    take(scratch.sums, kPassChunk * kPanel);
    return at;
  }
};

// Rows [first_row, first_row + count) of one head of a dense batch.
class HeadPanel {
 public:
  HeadPanel(const AttentionParams& params, const HeadPanelScratch& scratch) : params_(params), scratch_(scratch) {
    const float scale = params.softmax_scale;
    softcap_factor_ = params.softcap > 0.0f ? scale / params.softcap : 0.0f;
    unit_ = params.softcap > 0.0f ? params.softcap : scale;
  }

  void start(int64_t batch, int64_t head, int64_t first_row) {
    batch_ = batch;
    head_k_ = head / (params_.heads_q / params_.heads_k);
    terms_ = ScoreTerms(params_, batch, params_.seqlen_q, params_.seqlen_k);
    const int64_t rest = params_.seqlen_q - first_row;
    count_ = static_cast<int>(rest < kPanel ? rest : kPanel);
    const MaskShape shape{params_.seqlen_q, params_.seqlen_k, params_.mask};
    for (int c = 0; c < kPanel; ++c) {
      columns_[c] = {first_row + (c < count_ ? c : count_ - 1), head};
      const KeyRange keys = intersection(shape.keys_of_row(columns_[c].row), terms_.kept());
      mask_.begin[c] = static_cast<int32_t>(keys.begin);
      mask_.end[c] = static_cast<int32_t>(keys.end);
      lse_[c] = kWeightless;
      if (c >= count_) continue;
      const float lse = statistic(params_.lse, c);
      if (lse != kHidden) lse_[c] = lse;
    }
    pack(params_.q, params_.head_dim, scratch_.queries);
  }

  int count() const { return count_; }
  const Column& column(int c) const { return columns_[c]; }
  bool has_weight(int c) const { return lse_[c] != kWeightless; }
  float statistic(const RowsView& view, int c) const {
    return view.data[batch_ * view.batch_stride + columns_[c].head * view.head_stride + columns_[c].row];
  }

  // dst[d][column] of the rows that have weights; zeros elsewhere.
  void pack(const HeadsView& view, int64_t dim, float* dst) const {
    dispatch(params_.dtype, [&]<typename T>(T) {
      const T* rows[kPanel] = {};
      for (int c = 0; c < count_; ++c) {
        if (!has_weight(c)) continue;
        rows[c] = static_cast<const T*>(view.data) + batch_ * view.batch_stride + columns_[c].row * view.row_stride +
                  columns_[c].head * view.head_stride;
      }
      pack_columns(rows, dim, 1.0f, dst);
    });
  }

  // dst[key][column] = rows of k or v times packed columns.
  void multiply(const HeadsView& view, int64_t dim, int64_t first_key, int64_t num_keys, const float* columns,
                float* rows, float* dst) const {
    const int64_t ld = padded_dim(dim);
    dispatch(params_.dtype, [&]<typename T>(T) {
      pack_rows(static_cast<const T*>(view.data) + batch_ * view.batch_stride + first_key * view.row_stride +
                    head_k_ * view.head_stride,
                view.row_stride, num_keys, strip_ceil(static_cast<int32_t>(num_keys)), dim, rows, ld);
    });
    ScoreContext context{};
    context.head_dim = ld;
    F32 unused[kNV];
    for (F32& vector : unused) vector = F32::zero();
    for (int32_t key = 0; key < num_keys; key += kMR) {
      score_strip<kNV>(context, {rows, ld, columns}, key, 0, dst + key * kPanel, unused);
    }
  }

  // Calls body(at, column, seen, p) for every vector of the tile's probabilities.
  template <typename Body>
  void for_each_probability(int64_t first_key, int64_t num_keys, Body&& body) const {
    const bool terms = !terms_.empty();
    const bool additive = ScoreTerms::are_additive(params_);
    if (terms) terms_.write(columns_, count_, first_key, num_keys, scratch_.terms);
    for (int column = 0; column < kPanel; column += F32::kLanes) {
      const I32 begin = I32::load(mask_.begin + column), end = I32::load(mask_.end + column);
      const F32 lse = F32::load(lse_ + column);
      for (int64_t key = 0; key < num_keys; ++key) {
        const int64_t at = key * kPanel + column;
        const auto number = static_cast<int32_t>(first_key + key);
        Mask seen = (begin < I32::set1(number + 1)) & (I32::set1(number) < end);
        F32 score = F32::load(scratch_.scores + at), unit = F32::set1(unit_);
        if (softcap_factor_ != 0.0f) score = tanh(score * F32::set1(softcap_factor_));
        if (terms) {
          const F32 term = F32::load(scratch_.terms + at);
          seen = seen & (term > F32::set1(kLeastTerm));
          if (additive) score = fma(score, unit, term), unit = F32::set1(1.0f);
        }
        body(at, column, seen, exp(fms(score, unit, lse)));
      }
    }
  }

  void write_dropout_factors(int64_t first_key, int64_t num_keys) const {
    write_dropout(params_, batch_, columns_, count_, first_key, num_keys, scratch_.dropout);
  }

  // Whether some row sees a key of the tile.
  bool sees(int64_t first_key, int64_t num_keys) const {
    const KeyRange seen = intersection({mask_.begin[0], mask_.end[kPanel - 1]}, {first_key, first_key + num_keys});
    if (seen.empty()) return false;
    return terms_.empty() || terms_.seen(columns_, count_, first_key, num_keys) != TileSeen::kNone;
  }

 private:
  const AttentionParams& params_;
  const HeadPanelScratch scratch_;
  float softcap_factor_, unit_;

  int64_t batch_ = 0, head_k_ = 0;
  int count_ = 0;
  ScoreTerms terms_;
  Column columns_[kPanel];
  PanelMask mask_;
  alignas(64) float lse_[kPanel];
};

}  // namespace flagattn::FLAGATTN_ISA
