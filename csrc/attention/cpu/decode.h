// Attention of few columns (query rows of one group's heads) over many keys: the keys stream past once for all of them.
// Per row the arithmetic is the forward kernel's, operation by operation, so that the results have the same bits.
#pragma once

#include <cstdint>
#include <limits>

#include "attention/cpu/decode_scores.h"
#include "attention/cpu/decode_scratch.h"
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
  U* row_of(const HeadsView& view, int column) const {
    return static_cast<U*>(view.data) + sequence_.batch * view.batch_stride +
           (sequence_.first_q + column / group_) * view.row_stride +
           (item_.head_k * group_ + column % group_) * view.head_stride;
  }

  void start() {
    shape_ = {sequence_.seqlen_q, sequence_.seqlen_k, params_.mask};
    blocks_ = (columns_ + 3) / 4;
    place_queries(params_.q, scratch_.queries);
    if (params_.is_piecewise()) place_queries(params_.q2, scratch_.far_queries);
    for (int row = 0; row < sequence_.seqlen_q; ++row) {
      keys_[row] = shape_.keys_of_row(row);
      if (params_.is_piecewise()) far_end_[row] = shape_.far_end(row, params_.dist_threshold);
    }
  }

  // queries[d][block]: the block's four columns, zero behind the last one, repeated over a vector.
  void place_queries(const HeadsView& view, float* queries) const {
    const T* rows[kDecodeColumns];
    for (int c = 0; c < columns_; ++c) rows[c] = row_of<const T>(view, c);
    alignas(64) float wide[kDecodeColumns][F32::kLanes];
    for (int c = columns_; c < 4 * blocks_; ++c) F32::zero().store(wide[c]);
    for (int64_t d = 0; d < params_.head_dim; d += F32::kLanes) {
      const int64_t rest = params_.head_dim - d, n = rest < F32::kLanes ? rest : F32::kLanes;
      for (int c = 0; c < columns_; ++c) {
        (load_up_to(rows[c] + d, rest) * F32::set1(factors_.query)).store(wide[c]);
      }
      for (int64_t i = 0; i < n; ++i) {
        for (int b = 0; b < blocks_; ++b) {
          float* to = queries + ((d + i) * blocks_ + b) * F32::kLanes;
          for (int lane = 0; lane < F32::kLanes; ++lane) to[lane] = wide[4 * b + lane % 4][i];
        }
      }
    }
  }

  // Chunks ------------------------------------------------------------------------------------------------------------

  DecodeState shared_state(int64_t chunk) const {
    const int64_t at = (item_.sequence * schedule_.chunks + chunk) * schedule_.heads_k + item_.head_k;
    return {shared_.statistics + at, shared_.outputs + at * sizes_.outputs};
  }

  void run_chunk(int64_t chunk, int64_t next, const DecodeState& state) {
    reset(*state.statistics);
    for (int64_t i = 0; i < columns_ * sizes_.output_row; i += F32::kLanes) F32::zero().store(state.outputs + i);
    const KeyRange seen = shape_.keys_of_any_row(0, sequence_.seqlen_q - 1);
    const int64_t chunk_begin = chunk * kCpuKeyChunk, chunk_end = chunk_begin + kCpuKeyChunk;
    const int64_t begin = seen.begin > chunk_begin ? seen.begin : chunk_begin;
    const int64_t end = seen.end < chunk_end ? seen.end : chunk_end;
    for (int64_t first = begin / kCpuKeyTile * kCpuKeyTile; first < end; first += kCpuKeyTile) {
      const int64_t tile_end = first + kCpuKeyTile;
      const KeyRange tile{begin > first ? begin - first : 0, end < tile_end ? end - first : kCpuKeyTile};
      fill_rows(sequence_, item_.head_k, params_.v, first, tile, scratch_.value_rows);
      if (tile_end < end) {
        const int64_t rest = end - tile_end;
        fill_rows(sequence_, item_.head_k, params_.k, tile_end, {0, rest < kCpuKeyTile ? rest : kCpuKeyTile},
                  scratch_.next_rows);
      } else {
        fill_next(next);
      }
      run_tile(first, tile, state);
    }
  }

  // Takes a chunk's state into the total.
  void join(bool is_first, const DecodeState& state) {
    const DecodeState& total = scratch_.total;
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

  // The rows of keys `seen` of the tile from `first` on; entries beside them repeat the nearest one.
  void fill_rows(const Sequence& sequence, int64_t head_k, const HeadsView& view, int64_t first, const KeyRange& seen,
                 const void** rows) const {
    const T* head = static_cast<const T*>(view.data) + head_k * view.head_stride;
    const void** to = rows + seen.begin;
    for_each_stretch(sequence, first + seen.begin, seen.end - seen.begin,
                     [&](int64_t done, int64_t count, const KeyPlace& place) {
                       const T* row = head + place.offset(view);
                       for (int64_t i = 0; i < count; ++i, row += view.row_stride) to[done + i] = row;
                     });
    for (int64_t i = 0; i < seen.begin; ++i) rows[i] = rows[seen.begin];
    for (int64_t i = seen.end; i < kTileRows; ++i) rows[i] = rows[seen.end - 1];
  }

  // The first keys of item `next`, as far as is known; else something harmless.
  void fill_next(int64_t next) const {
    if (next >= 0) {
      const DecodeSchedule::Item item = schedule_.item(next);
      const Sequence sequence = sequence_of(params_, item.sequence);
      const KeyRange seen =
          MaskShape{sequence.seqlen_q, sequence.seqlen_k, params_.mask}.keys_of_any_row(0, sequence.seqlen_q - 1);
      const int64_t first = item.chunk * kCpuKeyChunk;
      if (sequence.seqlen_q > 0 && seen.begin <= first && first < seen.end) {
        const int64_t rest = seen.end - first;
        fill_rows(sequence, item.head_k, params_.k, first, {0, rest < kCpuKeyTile ? rest : kCpuKeyTile},
                  scratch_.next_rows);
        return;
      }
    }
    for (int64_t i = 0; i < kTileRows; ++i) scratch_.next_rows[i] = scratch_.value_rows[i];
  }

  static const T* const* typed(const void** rows) { return reinterpret_cast<const T* const*>(rows); }

  // Keys `tile` of the tile from `first` on, counted from there.
  void run_tile(int64_t first, const KeyRange& tile, const DecodeState& state) {
    with_blocks([&]<int NB>() { score_tile<NB>(first, tile); });

    F32 largest[kNV], rescale[kNV], partial[2][kNV];
    const int64_t begin = tile.begin / 2 * 2, end = (tile.end + 1) / 2 * 2;  // an even key and the odd one behind it
    find_largest(begin, end, largest);
    raise_maximum(*state.statistics, largest, F32::set1(factors_.exponent), rescale);
    weigh(*state.statistics, begin, end, partial);
    add_to_sum(*state.statistics, partial);

    // Where columns see different keys every row is added by itself: a weight of 0 would not cancel a value of NaN.
    const bool alike = keys_[sequence_.seqlen_q - 1].begin <= first + tile.begin && first + tile.end <= keys_[0].end;
    const auto add = [&](const KeyRange& keys, int column, int stop) {
      add_few_columns<T>(typed(scratch_.value_rows), typed(scratch_.next_rows), keys.begin, keys.end,
                         params_.head_dim_v, scratch_.scores, column, stop, scratch_.sums, sizes_.output_row);
    };
    if (alike) {
      add(tile, 0, columns_);
    } else {
      for (int row = 0; row < sequence_.seqlen_q; ++row) {
        const KeyRange keys = keys_in_tile(first, tile, row);
        if (keys.empty()) {
          clear_rows(scratch_.sums, row * group_, (row + 1) * group_);
        } else {
          add(keys, row * group_, (row + 1) * group_);
        }
      }
    }
    alignas(64) float scales[kPanel];
    for (int v = 0; v < kNV; ++v) rescale[v].store(scales + first_column(v));
    for (int c = 0; c < columns_; ++c) {
      const F32 scale = F32::set1(scales[c]);
      for (int64_t d = 0; d < sizes_.output_row; d += F32::kLanes) {
        float* at = state.outputs + c * sizes_.output_row + d;
        fma(F32::load(at), scale, F32::load(scratch_.sums + c * sizes_.output_row + d)).store(at);
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

  template <int NB>
  void score_tile(int64_t first, const KeyRange& tile) {
    constexpr int64_t kStripKeys = strip_keys(NB);
    const int64_t begin = tile.begin / kStripKeys * kStripKeys;
    const int64_t end = (tile.end + kStripKeys - 1) / kStripKeys * kStripKeys;
    const T* const* ahead = typed(scratch_.value_rows);
    const auto score = [&](const HeadsView& view, const void** rows, const float* queries, float* scores) {
      fill_rows(sequence_, item_.head_k, view, first, tile, rows);
      score_few_keys<T, NB>(typed(rows), ahead, queries, params_.head_dim, begin, end, scores);
    };
    const int64_t last = sequence_.seqlen_q - 1;
    const bool any_near = !params_.is_piecewise() || far_end_[0] < first + tile.end;
    const bool any_far = params_.is_piecewise() && far_end_[last] > first + tile.begin;
    if (any_near) score(params_.k, scratch_.key_rows, scratch_.queries, scratch_.scores);
    if (any_far) {
      score(params_.k2, scratch_.far_rows, scratch_.far_queries, any_near ? scratch_.far_scores : scratch_.scores);
    }
    if (any_near && any_far) {
      for_each_score(begin, end, [&](int64_t key, int column, float& score) {
        if (first + key < far_end_[column / group_]) score = scratch_.far_scores[&score - scratch_.scores];
      });
    }
    if (factors_.softcap != 0.0f) {
      for (int b = 0; b < NB; ++b) {
        for (int64_t i = begin * 4; i < end * 4; i += F32::kLanes) {
          float* at = scratch_.scores + b * kBlockScores + i;
          tanh(F32::load(at) * F32::set1(factors_.softcap)).store(at);
        }
      }
    }
    if (params_.alibi.slopes != nullptr) add_alibi(first, begin, end);
    hide(first, tile, begin, end);
  }

  // The terms of score_terms.h, and joined as there.
  void add_alibi(int64_t first, int64_t begin, int64_t end) {
    const float* slopes = params_.alibi.slopes + item_.sequence * params_.alibi.batch_stride + item_.head_k * group_;
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
        float* at = scratch_.scores + b * kBlockScores + key * 4;
        const F32 term = fma(F32::load(slope), abs(F32::load(row) - F32::load(number)), F32::zero());
        with_term<true>(F32::load(at), F32::set1(factors_.unit), term).store(at);
      }
    }
  }

  // Keys of [begin, end) that a column does not see.
  void hide(int64_t first, const KeyRange& tile, int64_t begin, int64_t end) {
    const int64_t last = sequence_.seqlen_q - 1;
    if (keys_[last].begin <= first + begin && first + end <= keys_[0].end && begin == tile.begin && end == tile.end) {
      return;
    }
    for_each_score(begin, end, [&](int64_t key, int column, float& score) {
      const KeyRange keys = keys_in_tile(first, tile, column / group_);
      if (key < keys.begin || key >= keys.end) score = -std::numeric_limits<float>::infinity();
    });
  }

  template <typename Body>
  FLAGATTN_INLINE void for_each_score(int64_t begin, int64_t end, Body&& body) const {
    for (int column = 0; column < columns_; ++column) {
      float* scores = scratch_.scores + column / 4 * kBlockScores + column % 4;
      for (int64_t key = begin; key < end; ++key) body(key, column, scores[key * 4]);
    }
  }

  // Softmax -----------------------------------------------------------------------------------------------------------
  //
  // Vectors hold four columns of kFourKeys keys; statistics lie by column.

  void find_largest(int64_t begin, int64_t end, F32 (&largest)[kNV]) const {
    alignas(64) float most[kPanel], lanes[F32::kLanes];
    for (float& value : most) value = -std::numeric_limits<float>::infinity();
    const int64_t whole = begin / kFourKeys * kFourKeys;
    for (int b = 0; b < blocks_; ++b) {
      const float* scores = scratch_.scores + b * kBlockScores;
      F32 running = F32::set1(-std::numeric_limits<float>::infinity());
      for (int64_t key = whole; key < end; key += kFourKeys) running = max(running, F32::load(scores + key * 4));
      running.store(lanes);
      for (int lane = 0; lane < F32::kLanes; ++lane) {
        float& value = most[4 * b + lane % 4];
        if (!(lanes[lane] <= value)) value = lanes[lane];
      }
    }
    for (int v = 0; v < kNV; ++v) largest[v] = F32::load(most + first_column(v));
  }

  // Scores become weights; partial[parity] adds them up in the order of the keys.
  void weigh(const PanelStatistics& statistics, int64_t begin, int64_t end, F32 (&partial)[2][kNV]) const {
    alignas(64) float sums[2][kPanel] = {}, lanes[F32::kLanes];
    const F32 factor = F32::set1(factors_.exponent);
    for (int b = 0; b < blocks_; ++b) {
      float* scores = scratch_.scores + b * kBlockScores;
      for (int lane = 0; lane < F32::kLanes; ++lane) lanes[lane] = statistics.maximum[4 * b + lane % 4];
      const F32 maximum = F32::load(lanes);
      for (int64_t key = begin / kFourKeys * kFourKeys; key < end; key += kFourKeys) {
        float* at = scores + key * 4;
        exp2((F32::load(at) - maximum) * factor).store(at);
      }
      float pair[8] = {};
      for (int64_t key = begin; key < end; key += 2) {
        for (int i = 0; i < 8; ++i) pair[i] += scores[key * 4 + i];
      }
      for (int i = 0; i < 4; ++i) {
        sums[0][4 * b + i] = pair[i];
        sums[1][4 * b + i] = pair[4 + i];
      }
    }
    for (int parity = 0; parity < 2; ++parity) {
      for (int v = 0; v < kNV; ++v) partial[parity][v] = F32::load(sums[parity] + first_column(v));
    }
  }

  // Results -----------------------------------------------------------------------------------------------------------

  void finish(bool nothing_seen) const {
    const DecodeState& total = scratch_.total;
    if (nothing_seen) {
      reset(*total.statistics);
      clear_rows(total.outputs, 0, columns_);
    }
    for (int c = 0; c < columns_; ++c) {
      const int64_t head = item_.head_k * group_ + c % group_;
      const RowResult result = params_.sinks == nullptr
                                   ? row_result(*total.statistics, c, factors_.natural)
                                   : row_result_with_sink(*total.statistics, c, factors_.natural, params_.sinks[head]);
      const F32 scale = F32::set1(result.normaliser);
      T* to = row_of<T>(params_.out, c);
      const float* from = total.outputs + c * sizes_.output_row;
      for (int64_t d = 0; d < params_.head_dim_v; d += F32::kLanes) {
        const int64_t rest = params_.head_dim_v - d;
        const F32 scaled = F32::load(from + d) * scale;
        if (rest >= F32::kLanes) {
          scaled.store(to + d);
        } else {
          scaled.store_n(to + d, rest);
        }
      }
      params_.lse.data[sequence_.batch * params_.lse.batch_stride + head * params_.lse.head_stride + sequence_.first_q +
                       c / group_] = result.lse;
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
  int columns_, blocks_;
  KeyRange keys_[kDecodeColumns];
  int64_t far_end_[kDecodeColumns];
};

}  // namespace flagattn::FLAGATTN_ISA
