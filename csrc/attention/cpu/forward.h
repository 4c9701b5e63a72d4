// Work items of the attention forward: some columns (query rows of one group's heads) against all the keys they see.
#pragma once

#include <cstdint>

#include "attention/cpu/dropout.h"
#include "attention/cpu/forward_columns.h"
#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/key_tiles.h"
#include "attention/cpu/outputs.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/scores.h"
#include "attention/cpu/softmax.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

class ForwardWorker : ForwardColumns {
 public:
  ForwardWorker(const AttentionParams& params, const ForwardSchedule& schedule, const ForwardScratch& scratch)
      : ForwardColumns(params, scratch),
        schedule_(schedule),
        tiles_(params, scratch.keys, scratch.far_keys, scratch.values) {}

  // The items [begin, end).
  void run(int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t stop = schedule_.stop(begin, end);
      item_ = schedule_.item(begin);
      item_.first_column = schedule_.item(stop - 1).first_column;
      run_columns((stop - begin) * schedule_.config.columns_per_item);
      begin = stop;
    }
  }

 private:
  // Neighbouring items of one group. Where all their key tiles can be kept it is a single item that meets them one
  // after another; else each of a few items meets the tiles that are kept before they give way to the next.
  void run_columns(int64_t most) {
    sequence_ = sequence_of(params_, item_.sequence);
    const int64_t columns = sequence_.seqlen_q * group_ - item_.first_column;
    if (columns <= 0 || sequence_.seqlen_q < schedule_.least_rows) return;
    num_columns_ = columns < most ? columns : most;
    num_panels_ = (num_columns_ + kPanel - 1) / kPanel;
    tiles_.start(item_, sequence_);
    if (ScoreTerms::exist(params_)) {
      terms_ = ScoreTerms(params_, item_.sequence, sequence_.seqlen_q, sequence_.seqlen_k);
      has_terms_ = !terms_.empty();
    }
    for (int64_t panel = 0; panel < num_panels_; ++panel) start_mask(panel);

    const int64_t item_panels = schedule_.config.columns_per_item / kPanel;
    const int64_t last_item = (num_panels_ - 1) / item_panels * item_panels;
    const int64_t kept_keys = schedule_.config.key_tiles * kCpuKeyTile;
    const KeyRange keys = keys_of_panels(0, num_panels_);
    for (int64_t begin = keys.begin / kept_keys * kept_keys; begin < keys.end; begin += kept_keys) {
      for (int64_t first = last_item; first >= 0; first -= item_panels) {
        first_panel_ = first;
        end_panel_ = first + item_panels < num_panels_ ? first + item_panels : num_panels_;
        run_item(begin, begin + kept_keys);
      }
    }
    for (int64_t first = 0; first < num_panels_; first += item_panels) {
      const int64_t end = first + item_panels < num_panels_ ? first + item_panels : num_panels_;
      const KeyRange seen = keys_of_panels(first, end);
      if (in_one_chunk(seen)) continue;  // finished with its last tile
      for (int64_t panel = first; panel < end; ++panel) {
        if (seen.empty()) start_panel(panel);
        finish_panel(panel);
      }
    }
  }

  static bool in_one_chunk(const KeyRange& seen) {
    return !seen.empty() && seen.begin / kCpuKeyChunk == (seen.end - 1) / kCpuKeyChunk;
  }

  // Panels [first_panel_, end_panel_) against the keys [begin, end) as far as they see them, chunk by chunk.
  void run_item(int64_t begin, int64_t end) {
    const KeyRange seen = keys_of_panels(first_panel_, end_panel_);
    if (seen.empty()) return;
    if (begin < seen.begin) begin = seen.begin / kCpuKeyTile * kCpuKeyTile;
    if (end > seen.end) end = seen.end;
    while (begin < end) {
      chunk_ = begin / kCpuKeyChunk;
      const int64_t chunk_end = (chunk_ + 1) * kCpuKeyChunk, stop = chunk_end < end ? chunk_end : end;
      for_each_later_chunk([&](int64_t panel) {
        reset(scratch_.chunk_statistics[panel - first_panel_]);
        clear_panel(outputs_at(panel));
      });
      for (; begin < stop; begin += kCpuKeyTile) {
        const bool first = begin <= seen.begin, last = begin + kCpuKeyTile >= seen.end;
        run_tile(begin, first, last && in_one_chunk(seen));
      }
      for_each_later_chunk([&](int64_t panel) {
        const ChunkFactors factors =
            merge_statistics(scratch_.statistics[panel], statistics_at(panel), F32::set1(factor_));
        merge_outputs(outputs_at(panel), head_dim_v_, factors, scratch_.outputs + panel * output_size());
      });
      begin = chunk_end;
    }
  }

  // Chunks of keys ----------------------------------------------------------------------------------------------------

  // A panel's first chunk goes to its results at once; what a later one adds is kept apart until it joins them.
  bool in_first_chunk(int64_t panel) const { return scratch_.masks[panel].begin[0] / kCpuKeyChunk == chunk_; }
  PanelStatistics& statistics_at(int64_t panel) const {
    return in_first_chunk(panel) ? scratch_.statistics[panel] : scratch_.chunk_statistics[panel - first_panel_];
  }
  float* outputs_at(int64_t panel) const {
    return in_first_chunk(panel) ? scratch_.outputs + panel * output_size()
                                 : scratch_.chunk_outputs + (panel - first_panel_) * output_size();
  }
  template <typename Body>
  void for_each_later_chunk(Body&& body) const {
    for (int64_t panel = first_panel_; panel < end_panel_; ++panel) {
      const KeyRange keys = keys_of_panels(panel, panel + 1);
      if (keys.begin < chunk_ * kCpuKeyChunk && chunk_ * kCpuKeyChunk < keys.end) body(panel);
    }
  }

  // One key tile ------------------------------------------------------------------------------------------------------

  // `starts`: the item's first tile, for which its queries are packed; `finishes`: the last one, after which its
  // results are stored. Both wait for memory, which the products of the panel before hide.
  void run_tile(int64_t first, bool starts, bool finishes) {
    const KeyTile tile = tile_at(first);
    const KeyTile next = tile_at(finishes ? sequence_.seqlen_k : first + kCpuKeyTile);
    const bool seen = !has_terms_ || find_seen(tile);
    ScoreContext context{};
    if (seen) context = open_tile(tile);
    for (int64_t panel = first_panel_; panel < end_panel_; ++panel) {
      if (starts) {
        start_panel(panel);
        if (panel + 1 < end_panel_) prefetch_rows(params_.q, params_.head_dim, panel + 1);
      }
      if (finishes) prefetch_rows(params_.out, params_.head_dim_v, panel);
      const int64_t turn = panel - first_panel_, turns = end_panel_ - first_panel_;
      tiles_.prefetch(next, static_cast<int32_t>(next.num_keys * turn / turns),
                      static_cast<int32_t>(next.num_keys * (turn + 1) / turns));
      if (seen) run_panel(context, panel);
      if (finishes) finish_panel(panel);
    }
  }

  KeyTile tile_at(int64_t first) const {
    const int64_t rest = sequence_.seqlen_k - first;
    return {static_cast<int32_t>(first), static_cast<int32_t>(rest < kCpuKeyTile ? rest < 0 ? 0 : rest : kCpuKeyTile)};
  }

  // The keys that all columns of the item see.
  KeyRange keys_of_all_columns() const {
    return {scratch_.masks[end_panel_ - 1].begin[columns_of(end_panel_ - 1) - 1], scratch_.masks[first_panel_].end[0]};
  }

  ScoreContext open_tile(const KeyTile& tile) {
    const int64_t first = tile.first;
    values_ = tiles_.values(tile);
    // Where all columns see all keys, what is not finite belongs into every output.
    const KeyRange all = keys_of_all_columns();
    const bool all_seen = !has_terms_ && all.begin <= first && first + tile.num_keys <= all.end;
    values_finite_ = all_seen || tiles_.values_finite(tile, values_);

    ScoreContext context{};
    context.head_dim = head_dim_;
    context.first_key = tile.first;
    context.num_keys = tile.num_keys;
    context.piecewise = params_.is_piecewise();
    // The border moves on with the columns: the last panel needs most far keys, the first one most near keys.
    if (!context.piecewise || scratch_.masks[first_panel_].far_end[0] < first + tile.num_keys) {
      context.near = tiles_.keys(tile);
    }
    if (context.piecewise && scratch_.masks[end_panel_ - 1].far_end[kPanel - 1] > first) {
      context.far = tiles_.far_keys(tile);
    }
    context.softcap_factor = softcap_factor_;
    context.additive = ScoreTerms::are_additive(params_);
    context.unit = unit_;
    return context;
  }

  // How much of the tile every panel of the item sees; false where none sees any.
  bool find_seen(const KeyTile& tile) const {
    bool any = false;
    for (int64_t panel = first_panel_; panel < end_panel_; ++panel) {
      const KeyRange keys = intersection(keys_of_panels(panel, panel + 1), {tile.first, tile.first + tile.num_keys});
      const TileSeen seen = keys.empty()
                                ? TileSeen::kNone
                                : terms_.seen(columns_at(panel).at, columns_of(panel), tile.first, tile.num_keys);
      scratch_.seen[panel - first_panel_] = seen;
      any = any || seen != TileSeen::kNone;
    }
    return any;
  }

  void start_terms(ScoreContext& context, int64_t panel) const {
    context.terms = nullptr;
    if (!has_terms_ || scratch_.seen[panel - first_panel_] == TileSeen::kAll) return;
    terms_.write(columns_at(panel).at, columns_of(panel), context.first_key, context.num_keys, scratch_.terms);
    context.terms = scratch_.terms;
  }

  void run_panel(ScoreContext& context, int64_t panel) {
    if (has_terms_ && scratch_.seen[panel - first_panel_] == TileSeen::kNone) return;
    const PanelMask& mask = scratch_.masks[panel];
    Run runs[kMostRuns];
    const int num_runs = cut_into_runs(mask, context.first_key, context.num_keys, runs);
    if (num_runs == 0) return;
    context.near.queries = scratch_.queries + panel * query_size();
    context.far.queries = scratch_.far_queries + panel * query_size();
    start_terms(context, panel);
    PanelStatistics& statistics = statistics_at(panel);
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
    const float* dropout = nullptr;
    if (params_.dropout.rng_state != nullptr) {
      dropout = scratch_.dropout;
      write_dropout(params_, item_.sequence, columns_at(panel).at, columns_of(panel), context.first_key,
                    context.num_keys, scratch_.dropout);
      for (int i = 0; i < num_runs; ++i) drop_weights(runs[i], dropout, scratch_.scores);
    }

    float* outputs = outputs_at(panel);
    if (num_runs == 1 && values_finite_) {
      with_vectors(runs[0], [&]<int NV>() { add_whole_tile<NV>(values_, runs[0], scratch_.scores, rescale, outputs); });
      return;
    }
    clear_panel(scratch_.sums);
    for (int i = 0; i < num_runs; ++i) {
      if (values_finite_) {
        with_vectors(runs[i], [&]<int NV>() { add_run<NV>(values_, runs[i], scratch_.scores, scratch_.sums); });
      } else {
        add_seen_keys(values_, mask, context.first_key, runs[i], context.terms, dropout, scratch_.scores,
                      scratch_.sums);
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

  const ForwardSchedule& schedule_;
  KeyTiles tiles_;

  int64_t num_panels_;
  int64_t first_panel_, end_panel_;  // of the item that meets keys
  int64_t chunk_;
  bool has_terms_ = false;

  ValueTile values_;  // the tile at work
  bool values_finite_;
};

}  // namespace flagattn::FLAGATTN_ISA
