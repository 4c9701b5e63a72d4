// Attention of few columns (query rows of one group's heads) over many keys: the keys stream past once for all of them.
// Per row the arithmetic is the forward kernel's, operation by operation, so that the results have the same bits.
#pragma once

#include <cstdint>

#include "attention/cpu/decode_products.h"
#include "attention/cpu/decode_rows.h"
#include "attention/cpu/decode_scratch.h"
#include "attention/cpu/decode_softmax.h"
#include "attention/cpu/decode_tile.h"
#include "attention/cpu/decode_values.h"
#include "attention/cpu/softmax.h"
#include "attention/decode_schedule.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

template <typename T>
class DecodeWorker : DecodeTileScores {
 public:
  DecodeWorker(const AttentionParams& params, const DecodeSchedule& schedule, const DecodeSizes& sizes,
               const DecodeShared& shared, const DecodeScratch& scratch)
      : DecodeTileScores(params, sizes, scratch), schedule_(schedule), shared_(shared) {}

  // `next` follows on this worker: its first keys are fetched meanwhile. Negative: none is known.
  void run(int64_t index, int64_t next) {
    item_ = schedule_.item(index);
    heads_ = static_cast<int>(item_.num_heads);
    sequence_ = sequence_of(params_, item_.sequence);
    columns_ = static_cast<int>(sequence_.seqlen_q) * group_;
    if (columns_ == 0 || sequence_.seqlen_q > schedule_.most_rows) return;
    [[maybe_unused]] const DecodeRegisters<T> registers(columns_);
    start<T>();
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
    finish<T>(first == end);
  }

 private:
  // Chunks ------------------------------------------------------------------------------------------------------------

  DecodeState shared_state(int64_t chunk) const {
    const int64_t at = (item_.sequence * schedule_.chunks + chunk) * schedule_.heads_k + item_.first_head;
    return {shared_.statistics + at, shared_.outputs + at * sizes_.outputs};
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
    if (sequence.seqlen_q == 0 || sequence.seqlen_q > schedule_.most_rows || seen.begin > first || rest <= 0) return {};
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
    score_tile<T>(first, tile, values);
    const int64_t begin = tile.begin / 2 * 2, end = (tile.end + 1) / 2 * 2;  // an even key and the odd one behind it
    for (int head = 0; head < heads_; ++head) {
      float* scores = scratch_.scores + head * sizes_.scores;
      PanelStatistics& statistics = state.statistics[head];
      F32 largest[kNV], rescale[kNV], partial[2][kNV];
      largest_scores(scores, blocks_, begin, end, largest);
      raise_maximum(statistics, largest, F32::set1(factors_.exponent), rescale);
      weigh(statistics, blocks_, begin, end, factors_.exponent, scores, partial);
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
    const int64_t steps = values.steps(heads_);
    // Where columns see different keys every row is added by itself: a weight of 0 would not cancel a value of NaN.
    const bool alike = keys_[sequence_.seqlen_q - 1].begin <= first + tile.begin && first + tile.end <= keys_[0].end;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t head = step % heads_, key = (values.begin + step / heads_) * kGroupKeys;
      const RowGroup group = values.at(step, heads_);
      const RowGroup next = values.from_or(step + 1, heads_, later);
      const RowsAhead<T> ahead(group, next, params_.head_dim_v);
      if constexpr (kInTiles<T>) {
        const KeyRange seen{tile.begin > key ? tile.begin - key : 0,
                            tile.end < key + kGroupKeys ? tile.end - key : kGroupKeys};
        const auto keys_of = [&](int column) {
          const KeyRange keys = keys_in_tile(first, tile, column / group_);
          return KeyRange{keys.begin - key, keys.end - key};
        };
        DecodeTiles<T>::add_values(group, seen, scratch_.scores + head * sizes_.scores + key * 4, columns_, ahead,
                                   params_.head_dim_v, step >= heads_, alike, keys_of,
                                   scratch_.sums + head * sizes_.outputs, sizes_.output_row);
        continue;
      }
      const auto add = [&](const KeyRange& keys, int column, int stop) {
        const int64_t begin = keys.begin > key ? keys.begin : key;
        const int64_t end = keys.end < key + kGroupKeys ? keys.end : key + kGroupKeys;
        if (begin >= end) return;
        const float* weights = scratch_.scores + head * sizes_.scores + begin * 4;
        float* sums = scratch_.sums + head * sizes_.outputs;
        add_few_columns<T>(group.from(begin - key), ahead, end - begin, params_.head_dim_v, weights, column, stop,
                           begin > keys.begin, sums, sizes_.output_row);
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

  const DecodeSchedule& schedule_;
  const DecodeShared shared_;

  alignas(64) float rescale_[kMostDecodeHeads][kPanel];
};

}  // namespace flagattn::FLAGATTN_ISA
