// Attention of few columns (query rows of one group's heads) over many keys: the keys stream past once for all of them.
// Per row the arithmetic is the forward kernel's, operation by operation, so that the results have the same bits.
#pragma once

#include <cstdint>
#include <limits>

#include "attention/cpu/decode_rows.h"
#include "attention/cpu/decode_scores.h"
#include "attention/cpu/decode_scratch.h"
#include "attention/cpu/decode_softmax.h"
#include "attention/cpu/decode_values.h"
#include "attention/cpu/score_factors.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/softmax.h"
#include "attention/decode_schedule.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

template <typename T>
class DecodeWorker {
 public:
  DecodeWorker(const AttentionParams& params, const DecodeSchedule& schedule, const DecodeSizes& sizes,
               const DecodeShared& shared, const DecodeScratch& scratch)
      : params_(params),
        schedule_(schedule),
        sizes_(sizes),
        shared_(shared),
        scratch_(scratch),
        factors_(score_factors(params, /*additive_terms=*/params.alibi.slopes != nullptr)),
        group_(static_cast<int>(params.heads_q / params.heads_k)) {}

  // `next` follows on this worker: its first keys are fetched meanwhile. Negative: none is known.
  void run(int64_t index, int64_t next) {
    item_ = schedule_.item(index);
    heads_ = static_cast<int>(item_.num_heads);
    sequence_ = sequence_of(params_, item_.sequence);
    columns_ = static_cast<int>(sequence_.seqlen_q) * group_;
    if (columns_ == 0) return;
    start();
    const KeyRange seen = shape_.keys_of_any_row(0, sequence_.seqlen_q - 1);
    const int64_t first = seen.empty() ? 0 : seen.begin / kCpuKeyChunk;
    const int64_t end = seen.empty() ? 0 : (seen.end - 1) / kCpuKeyChunk + 1;
    if (schedule_.split) {
      if (item_.chunk >= first && item_.chunk < end) run_chunk(item_.chunk, next, shared_state(item_.chunk));
      if (shared_.missing[item_.group].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
      for (int64_t chunk = first; chunk < end; ++chunk) join(chunk == first, shared_state(chunk));
    } else {
      for (int64_t chunk = first; chunk < end; ++chunk) {
        const DecodeState& state = chunk == first ? scratch_.total : scratch_.chunk;
        run_chunk(chunk, chunk + 1 < end ? index : next, state);
        if (chunk > first) join(false, state);
      }
    }
    finish(first == end);
  }

 private:
  // Columns -----------------------------------------------------------------------------------------------------------

  template <typename U>
  U* row_of(const HeadsView& view, int head, int column) const {
    return static_cast<U*>(view.data) + sequence_.batch * view.batch_stride +
           (sequence_.first_q + column / group_) * view.row_stride + query_head(head, column) * view.head_stride;
  }
  int64_t query_head(int head, int column) const { return (item_.first_head + head) * group_ + column % group_; }

  void start() {
    shape_ = {sequence_.seqlen_q, sequence_.seqlen_k, params_.mask};
    blocks_ = (columns_ + 3) / 4;
    for (int head = 0; head < heads_; ++head) {
      place_queries(params_.q, head, scratch_.queries + head * sizes_.queries);
      if (params_.is_piecewise()) place_queries(params_.q2, head, scratch_.far_queries + head * sizes_.queries);
    }
    for (int row = 0; row < sequence_.seqlen_q; ++row) {
      keys_[row] = shape_.keys_of_row(row);
      if (params_.is_piecewise()) far_end_[row] = shape_.far_end(row, params_.dist_threshold);
    }
  }

  // queries[d][block][4]: the block's four columns, zero behind the last one.
  void place_queries(const HeadsView& view, int head, float* queries) const {
    const T* rows[kDecodeColumns];
    for (int c = 0; c < columns_; ++c) rows[c] = row_of<const T>(view, head, c);
    alignas(64) float wide[kDecodeColumns][F32::kLanes];
    for (int c = columns_; c < 4 * blocks_; ++c) F32::zero().store(wide[c]);
    for (int64_t d = 0; d < params_.head_dim; d += F32::kLanes) {
      const int64_t rest = params_.head_dim - d, n = rest < F32::kLanes ? rest : F32::kLanes;
      for (int c = 0; c < columns_; ++c) {
        (load_up_to(rows[c] + d, rest) * F32::set1(factors_.query)).store(wide[c]);
      }
      for (int64_t i = 0; i < n; ++i) {
        for (int c = 0; c < 4 * blocks_; ++c) queries[(d + i) * 4 * blocks_ + c] = wide[c][i];
      }
    }
  }

  // Chunks ------------------------------------------------------------------------------------------------------------

  DecodeState shared_state(int64_t chunk) const {
    const int64_t at = (item_.sequence * schedule_.chunks + chunk) * schedule_.heads_k + item_.first_head;
    return {shared_.statistics + at, shared_.outputs + at * sizes_.outputs};
  }
  static DecodeState state_of(const DecodeState& state, int head, const DecodeSizes& sizes) {
    return {state.statistics + head, state.outputs + head * sizes.outputs};
  }

  void run_chunk(int64_t chunk, int64_t next, const DecodeState& state) {
    for (int head = 0; head < heads_; ++head) {
      reset(state.statistics[head]);
      clear_rows(state.outputs + head * sizes_.outputs, 0, columns_);
    }
    const KeyRange seen = shape_.keys_of_any_row(0, sequence_.seqlen_q - 1);
    const int64_t chunk_begin = chunk * kCpuKeyChunk, chunk_end = chunk_begin + kCpuKeyChunk;
    const int64_t begin = seen.begin > chunk_begin ? seen.begin : chunk_begin;
    const int64_t end = seen.end < chunk_end ? seen.end : chunk_end;
    for (int64_t first = begin / kCpuKeyTile * kCpuKeyTile; first < end; first += kCpuKeyTile) {
      const int64_t tile_end = first + kCpuKeyTile;
      const KeyRange tile{begin > first ? begin - first : 0, end < tile_end ? end - first : kCpuKeyTile};
      const int64_t rest = end - tile_end;
      const RowWalk later = rest > 0 ? walk_over<T>(sequence_, item_.first_head, params_.k, tile_end,
                                                    {0, rest < kCpuKeyTile ? rest : kCpuKeyTile}, scratch_.next_rows)
                                     : first_keys_of(next);
      run_tile(first, tile, later, state);
    }
  }

  // Item `next`, as far as is known.
  RowWalk first_keys_of(int64_t next) const {
    if (next < 0) return {};
    const DecodeSchedule::Item item = schedule_.item(next);
    const Sequence sequence = sequence_of(params_, item.sequence);
    const KeyRange seen =
        MaskShape{sequence.seqlen_q, sequence.seqlen_k, params_.mask}.keys_of_any_row(0, sequence.seqlen_q - 1);
    const int64_t first = item.chunk * kCpuKeyChunk, rest = seen.end - first;
    if (sequence.seqlen_q == 0 || seen.begin > first || rest <= 0) return {};
    return walk_over<T>(sequence, item.first_head, params_.k, first, {0, rest < kCpuKeyTile ? rest : kCpuKeyTile},
                        scratch_.next_rows);
  }

  // Takes a chunk's state into the total.
  void join(bool is_first, const DecodeState& state) {
    for (int head = 0; head < heads_; ++head) {
      join_head(is_first, state_of(scratch_.total, head, sizes_), state_of(state, head, sizes_));
    }
  }
  void join_head(bool is_first, const DecodeState& total, const DecodeState& state) const {
    if (is_first) {
      *total.statistics = *state.statistics;
      for (int64_t i = 0; i < columns_ * sizes_.output_row; ++i) total.outputs[i] = state.outputs[i];
      return;
    }
    const ChunkFactors merge = merge_statistics(*total.statistics, *state.statistics, F32::set1(factors_.exponent));
    alignas(64) float before[kPanel], added[kPanel];
    for (int v = 0; v < kNV; ++v) {
      merge.before[v].store(before + first_column(v));
      merge.chunk[v].store(added + first_column(v));
    }
    for (int c = 0; c < columns_; ++c) {
      const F32 scale = F32::set1(before[c]), scale_added = F32::set1(added[c]);
      for (int64_t d = 0; d < sizes_.output_row; d += F32::kLanes) {
        float* at = total.outputs + c * sizes_.output_row + d;
        fma(F32::load(at), scale, F32::load(state.outputs + c * sizes_.output_row + d) * scale_added).store(at);
      }
    }
  }

  // Tiles -------------------------------------------------------------------------------------------------------------

  // Keys `tile` of the tile from `first` on, counted from there; `later` follows.
  void run_tile(int64_t first, const KeyRange& tile, const RowWalk& later, const DecodeState& state) {
    const RowWalk values = walk_over<T>(sequence_, item_.first_head, params_.v, first, tile, scratch_.value_rows);
    score_tile(first, tile, values);
    const int64_t begin = tile.begin / 2 * 2, end = (tile.end + 1) / 2 * 2;  // an even key and the odd one behind it
    const F32 factor = F32::set1(factors_.exponent);
    for (int head = 0; head < heads_; ++head) {
      float* scores = scratch_.scores + head * sizes_.scores;
      PanelStatistics& statistics = state.statistics[head];
      F32 largest[kNV], rescale[kNV], partial[2][kNV];
      largest_scores(scores, blocks_, begin, end, largest);
      raise_maximum(statistics, largest, factor, rescale);
      weigh(statistics, blocks_, begin, end, factor, scores, partial);
      add_to_sum(statistics, partial);
      for (int v = 0; v < kNV; ++v) rescale[v].store(rescale_[head] + first_column(v));
    }
    add_values_of_tile(first, tile, values, later);
    for (int head = 0; head < heads_; ++head) {
      for (int c = 0; c < columns_; ++c) {
        const F32 scale = F32::set1(rescale_[head][c]);
        const int64_t row = head * sizes_.outputs + c * sizes_.output_row;
        for (int64_t d = row; d < row + sizes_.output_row; d += F32::kLanes) {
          float* at = state.outputs + d;
          fma(F32::load(at), scale, F32::load(scratch_.sums + d)).store(at);
        }
      }
    }
  }

  void add_values_of_tile(int64_t first, const KeyRange& tile, const RowWalk& values, const RowWalk& later) const {
    const int64_t steps = values.steps(heads_), distance = steps_ahead(params_.head_dim_v);
    // Where columns see different keys every row is added by itself: a weight of 0 would not cancel a value of NaN.
    const bool alike = keys_[sequence_.seqlen_q - 1].begin <= first + tile.begin && first + tile.end <= keys_[0].end;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t head = step % heads_, key = (values.begin + step / heads_) * kGroupKeys;
      const RowGroup group = values.at(step, heads_), ahead = ahead_of(values, later, step, heads_, distance);
      const auto add = [&](const KeyRange& keys, int column, int stop) {
        const int64_t begin = keys.begin > key ? keys.begin : key;
        const int64_t end = keys.end < key + kGroupKeys ? keys.end : key + kGroupKeys;
        if (begin >= end) return;
        const float* weights = scratch_.scores + head * sizes_.scores + begin * 4;
        float* sums = scratch_.sums + head * sizes_.outputs;
        add_few_columns<T>({group.rows + begin - key, group.offset}, {ahead.rows + begin - key, ahead.offset},
                           end - begin, params_.head_dim_v, weights, column, stop, begin > keys.begin, sums,
                           sizes_.output_row);
      };
      if (alike) {
        add(tile, 0, columns_);
        continue;
      }
      for (int row = 0; row < sequence_.seqlen_q; ++row) {
        const KeyRange keys = keys_in_tile(first, tile, row);
        if (!keys.empty()) add(keys, row * group_, (row + 1) * group_);
        if (keys.empty() && step < heads_) {
          clear_rows(scratch_.sums + head * sizes_.outputs, row * group_, (row + 1) * group_);
        }
      }
    }
  }

  KeyRange keys_in_tile(int64_t first, const KeyRange& tile, int64_t row) const {
    const int64_t begin = keys_[row].begin - first, end = keys_[row].end - first;
    return {begin > tile.begin ? begin : tile.begin, end < tile.end ? end : tile.end};
  }
  void clear_rows(float* outputs, int first, int stop) const {
    for (int64_t i = first * sizes_.output_row; i < stop * sizes_.output_row; i += F32::kLanes) {
      F32::zero().store(outputs + i);
    }
  }

  // As many steps as a few pages take: far enough for memory to answer, near enough for the rows to be in L1 still.
  static int64_t steps_ahead(int64_t head_dim) {
    constexpr int64_t kAheadBytes = 16 * 1024;
    const int64_t steps = kAheadBytes / (kGroupKeys * head_dim * static_cast<int64_t>(sizeof(T)));
    return steps > 1 ? steps : 1;
  }

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

  // Of all heads; `values` follow.
  void score_tile(int64_t first, const KeyRange& tile, const RowWalk& values) {
    const auto walk = [&](const HeadsView& view, const void** rows) {
      return walk_over<T>(sequence_, item_.first_head, view, first, tile, rows);
    };
    const auto score = [&](const RowWalk& keys, const RowWalk& later, const float* queries, float* scores) {
      const int64_t steps = keys.steps(heads_), distance = steps_ahead(params_.head_dim);
      with_blocks([&]<int NB>() {
        for (int64_t step = 0; step < steps; ++step) {
          const int64_t head = step % heads_, key = (keys.begin + step / heads_) * kGroupKeys;
          score_group<T, NB>(keys.at(step, heads_), ahead_of(keys, later, step, heads_, distance),
                             queries + head * sizes_.queries, params_.head_dim,
                             scores + head * sizes_.scores + key * 4);
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

  template <typename Body>
  FLAGATTN_INLINE void for_each_score(float* all, int64_t begin, int64_t end, Body&& body) const {
    for (int column = 0; column < columns_; ++column) {
      float* scores = all + column / 4 * kBlockScores + column % 4;
      for (int64_t key = begin; key < end; ++key) body(key, column, scores[key * 4]);
    }
  }

  // Results -----------------------------------------------------------------------------------------------------------

  void finish(bool nothing_seen) const {
    for (int head = 0; head < heads_; ++head) finish_head(head, state_of(scratch_.total, head, sizes_), nothing_seen);
  }
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

  const AttentionParams& params_;
  const DecodeSchedule& schedule_;
  const DecodeSizes& sizes_;
  const DecodeShared shared_;
  const DecodeScratch scratch_;
  const ScoreFactors factors_;
  const int group_;

  DecodeSchedule::Item item_;
  Sequence sequence_;
  MaskShape shape_;
  int heads_, columns_, blocks_;
  KeyRange keys_[kDecodeColumns];
  int64_t far_end_[kDecodeColumns];
  alignas(64) float rescale_[kMostDecodeHeads][kPanel];
};

}  // namespace flagattn::FLAGATTN_ISA
