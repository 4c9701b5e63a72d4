// The scores of a tile of decode keys, from the products to what softmax takes: softcap, ALiBi, masks.
#pragma once

#include <cstdint>
#include <limits>

#include "attention/cpu/decode_columns.h"
#include "attention/cpu/decode_products.h"
#include "attention/cpu/decode_rows.h"
#include "attention/cpu/decode_scores.h"
#include "attention/cpu/score_terms.h"
#include "attention/mask.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

class DecodeTileScores : protected DecodeColumns {
 protected:
  using DecodeColumns::DecodeColumns;

  // Of all heads; `values` follow.
  template <typename T>
  void score_tile(int64_t first, const KeyRange& tile, const RowWalk& values) {
    const auto walk = [&](const HeadsView& view, const void** rows) {
      return walk_over<T>(sequence_, item_.first_head, view, first, tile, rows);
    };
    const auto score = [&](const RowWalk& keys, const RowWalk& later, const float* queries, float* scores) {
      const int64_t steps = keys.steps(heads_);
      with_blocks([&]<int NB>() {
        for (int64_t step = 0; step < steps;) {
          const int64_t head = step % heads_, key = (keys.begin + step / heads_) * kGroupKeys;
          if constexpr (kInTiles<T>) {
            DecodeTiles<T>::score_group(keys.at(step, heads_), keys.from_or(step + 1, heads_, later),
                                        reinterpret_cast<const T*>(queries + head * sizes_.queries), NB,
                                        params_.head_dim, scores + head * sizes_.scores + key * 4);
            ++step;
            continue;
          }
          const auto score_heads = [&]<int H>() {
            RowGroup groups[H];
            for (int h = 0; h < H; ++h) groups[h] = keys.at(step + h, heads_);
            const RowGroup next = keys.from_or(step + H, heads_, later);
            score_group<T, NB, H>(groups, next, queries + head * sizes_.queries, sizes_.queries, params_.head_dim,
                                  scores + head * sizes_.scores + key * 4, sizes_.scores);
            step += H;
          };
          if (NB == 1 && head + 1 < heads_) {
            score_heads.template operator()<2>();
          } else {
            score_heads.template operator()<1>();
          }
        }
      });
    };
    const int64_t last = sequence_.seqlen_q - 1;
    const bool any_near = !params_.is_piecewise() || far_end_[0] < first + tile.end;
    const bool any_far = params_.is_piecewise() && far_end_[last] > first + tile.begin;
    RowWalk far;
    if (any_far) far = walk(params_.k2, scratch_.far_rows);
    if (any_near) score(walk(params_.k, scratch_.key_rows), any_far ? far : values, scratch_.queries, scratch_.scores);
    if (any_far) score(far, values, scratch_.far_queries, any_near ? scratch_.far_scores : scratch_.scores);

    const int64_t begin = values.begin * kGroupKeys, end = values.end * kGroupKeys;
    for (int head = 0; head < heads_; ++head) {
      float* scores = scratch_.scores + head * sizes_.scores;
      if (any_near && any_far) {
        const float* far_scores = scratch_.far_scores + head * sizes_.scores;
        for_each_score(scores, begin, end, [&](int64_t key, int column, float& value) {
          if (first + key < far_end_[column / group_]) value = far_scores[&value - scores];
        });
      }
      if (factors_.softcap != 0.0f) cap(scores, begin, end);
      if (params_.alibi.slopes != nullptr) add_alibi(scores, head, first, begin, end);
      hide(scores, first, tile, begin, end);
    }
  }

 private:
  template <typename Body>
  void with_blocks(Body&& body) const {
    switch (blocks_) {
      case 1:
        return body.template operator()<1>();
      case 2:
        return body.template operator()<2>();
      case 3:
        return body.template operator()<3>();
      default:
        return body.template operator()<4>();
    }
  }

  void cap(float* scores, int64_t begin, int64_t end) const {
    for (int b = 0; b < blocks_; ++b) {
      for (int64_t i = begin * 4; i < end * 4; i += F32::kLanes) {
        float* at = scores + b * kBlockScores + i;
        tanh(F32::load(at) * F32::set1(factors_.softcap)).store(at);
      }
    }
  }

  // The terms of score_terms.h, and joined as there.
  void add_alibi(float* scores, int head, int64_t first, int64_t begin, int64_t end) const {
    const float* slopes =
        params_.alibi.slopes + item_.sequence * params_.alibi.batch_stride + query_head(head, /*column=*/0);
    const int64_t aligned = sequence_.seqlen_k - sequence_.seqlen_q - first;
    alignas(64) float slope[F32::kLanes], row[F32::kLanes], number[F32::kLanes];
    for (int b = 0; b < blocks_; ++b) {
      for (int lane = 0; lane < F32::kLanes; ++lane) {
        const int column = 4 * b + lane % 4;
        slope[lane] = column < columns_ ? -slopes[column % group_] : 0.0f;
        row[lane] = static_cast<float>(aligned + column / group_);
      }
      for (int64_t key = begin; key < end; key += kFourKeys) {
        for (int lane = 0; lane < F32::kLanes; ++lane) number[lane] = static_cast<float>(key + lane / 4);
        float* at = scores + b * kBlockScores + key * 4;
        const F32 term = fma(F32::load(slope), abs(F32::load(row) - F32::load(number)), F32::zero());
        with_term<true>(F32::load(at), F32::set1(factors_.unit), term).store(at);
      }
    }
  }

  // Keys of [begin, end) that a column does not see.
  void hide(float* scores, int64_t first, const KeyRange& tile, int64_t begin, int64_t end) const {
    const int64_t last = sequence_.seqlen_q - 1;
    if (keys_[last].begin <= first + begin && first + end <= keys_[0].end && begin == tile.begin && end == tile.end) {
      return;
    }
    for_each_score(scores, begin, end, [&](int64_t key, int column, float& score) {
      const KeyRange keys = keys_in_tile(first, tile, column / group_);
      if (key < keys.begin || key >= keys.end) score = -std::numeric_limits<float>::infinity();
    });
  }
};

}  // namespace flagattn::FLAGATTN_ISA
