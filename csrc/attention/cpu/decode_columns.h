// The columns of a decode item (query rows of one group's heads, for some heads): where their rows lie, what they see,
// and the way of queries and results into the kernel's layout and back.
#pragma once

#include <cstdint>
#include <type_traits>

#include "attention/cpu/decode_products.h"
#include "attention/cpu/decode_rows.h"
#include "attention/cpu/decode_scores.h"
#include "attention/cpu/decode_scratch.h"
#include "attention/cpu/decode_values.h"
#include "attention/cpu/score_factors.h"
#include "attention/cpu/softmax.h"
#include "attention/decode_schedule.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

class DecodeColumns {
 public:
  DecodeColumns(const AttentionParams& params, const DecodeSizes& sizes, const DecodeScratch& scratch)
      : params_(params),
        sizes_(sizes),
        scratch_(scratch),
        factors_(score_factors(params, /*additive_terms=*/params.alibi.slopes != nullptr)),
        group_(static_cast<int>(params.heads_q / params.heads_k)) {}

 protected:
  template <typename U>
  U* row_of(const HeadsView& view, int head, int column) const {
    return static_cast<U*>(view.data) + sequence_.batch * view.batch_stride +
           (sequence_.first_q + column / group_) * view.row_stride + query_head(head, column) * view.head_stride;
  }
  int64_t query_head(int head, int column) const { return (item_.first_head + head) * group_ + column % group_; }

  template <typename T>
  void start() {
    shape_ = {sequence_.seqlen_q, sequence_.seqlen_k, params_.mask};
    blocks_ = (columns_ + 3) / 4;
    for (int head = 0; head < heads_; ++head) {
      place_queries<T>(params_.q, head, scratch_.queries + head * sizes_.queries);
      if (params_.is_piecewise()) place_queries<T>(params_.q2, head, scratch_.far_queries + head * sizes_.queries);
    }
    for (int row = 0; row < sequence_.seqlen_q; ++row) {
      keys_[row] = shape_.keys_of_row(row);
      if (params_.is_piecewise()) far_end_[row] = shape_.far_end(row, params_.dist_threshold);
    }
  }

  // queries[d][block][4]: the block's four columns, zero behind the last one. In tiles queries[d / 2][block][4][d % 2],
  // as they are stored.
  template <typename T>
  void place_queries(const HeadsView& view, int head, float* queries) const {
    const T* rows[kDecodeColumns];
    for (int c = 0; c < columns_; ++c) rows[c] = row_of<const T>(view, head, c);
    using Placed = std::conditional_t<kInTiles<T>, T, float>;
    constexpr int64_t kTogether = kInTiles<T> ? 2 : 1;
    alignas(64) Placed wide[kDecodeColumns][F32::kLanes];
    for (int c = columns_; c < 4 * blocks_; ++c) F32::zero().store(wide[c]);
    const int64_t dims = kInTiles<T> ? (params_.head_dim + 31) / 32 * 32 : params_.head_dim;
    auto* to = reinterpret_cast<Placed*>(queries);
    for (int64_t d = 0; d < dims; d += F32::kLanes) {
      const int64_t rest = params_.head_dim - d, left = dims - d, n = left < F32::kLanes ? left : F32::kLanes;
      for (int c = 0; c < columns_; ++c) {
        (load_up_to(rows[c] + d, rest) * F32::set1(factors_.query)).store(wide[c]);
      }
      for (int64_t i = 0; i < n; ++i) {
        Placed* row = to + (d + i) / kTogether * kTogether * 4 * blocks_ + (d + i) % kTogether;
        for (int c = 0; c < 4 * blocks_; ++c) row[c * kTogether] = wide[c][i];
      }
    }
  }

  // What they see
  // ------------------------------------------------------------------------------------------------------

  KeyRange keys_in_tile(int64_t first, const KeyRange& tile, int64_t row) const {
    const int64_t begin = keys_[row].begin - first, end = keys_[row].end - first;
    return {begin > tile.begin ? begin : tile.begin, end < tile.end ? end : tile.end};
  }
  void clear_rows(float* outputs, int first, int stop) const {
    for (int64_t i = first * sizes_.output_row; i < stop * sizes_.output_row; i += F32::kLanes) {
      F32::zero().store(outputs + i);
    }
  }
  template <typename Body>
  FLAGATTN_INLINE void for_each_score(float* all, int64_t begin, int64_t end, Body&& body) const {
    for (int column = 0; column < columns_; ++column) {
      float* scores = all + column / 4 * kBlockScores + column % 4;
      for (int64_t key = begin; key < end; ++key) body(key, column, scores[key * 4]);
    }
  }

  // Results -----------------------------------------------------------------------------------------------------------

  template <typename T>
  void finish(bool nothing_seen) const {
    for (int head = 0; head < heads_; ++head)
      finish_head<T>(head, state_of(scratch_.total, head, sizes_), nothing_seen);
  }
  template <typename T>
  void finish_head(int head, const DecodeState& total, bool nothing_seen) const {
    if (nothing_seen) {
      reset(*total.statistics);
      clear_rows(total.outputs, 0, columns_);
    }
    for (int c = 0; c < columns_; ++c) {
      const int64_t query = query_head(head, c);
      const RowResult result = params_.sinks == nullptr
                                   ? row_result(*total.statistics, c, factors_.natural)
                                   : row_result_with_sink(*total.statistics, c, factors_.natural, params_.sinks[query]);
      const F32 scale = F32::set1(result.normaliser);
      T* to = row_of<T>(params_.out, head, c);
      float* from = total.outputs + c * sizes_.output_row;
      unpair(dims_in_pairs<T>(params_.head_dim_v), from);
      for (int64_t d = 0; d < params_.head_dim_v; d += F32::kLanes) {
        const int64_t rest = params_.head_dim_v - d;
        const F32 scaled = F32::load(from + d) * scale;
        if (rest >= F32::kLanes) {
          scaled.store(to + d);
        } else {
          scaled.store_n(to + d, rest);
        }
      }
      params_.lse.data[sequence_.batch * params_.lse.batch_stride + query * params_.lse.head_stride +
                       sequence_.first_q + c / group_] = result.lse;
    }
  }
  static DecodeState state_of(const DecodeState& state, int head, const DecodeSizes& sizes) {
    return {state.statistics + head, state.outputs + head * sizes.outputs};
  }

  const AttentionParams& params_;
  const DecodeSizes& sizes_;
  const DecodeScratch scratch_;
  const ScoreFactors factors_;
  const int group_;

  DecodeSchedule::Item item_;
  Sequence sequence_;
  MaskShape shape_;
  int heads_, columns_, blocks_;
  KeyRange keys_[kDecodeColumns];
  int64_t far_end_[kDecodeColumns];
};

}  // namespace flagattn::FLAGATTN_ISA
