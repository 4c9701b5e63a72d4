// Work items of the attention forward: some columns (query rows of one group's heads) against all the keys they see.
#pragma once

#include <cstdint>

#include "attention/cpu/dropout.h"
#include "attention/cpu/forward_columns.h"
#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/key_tiles.h"
#include "attention/cpu/outputs.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/scores.h"
#include "attention/cpu/softmax.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

template <typename Products>
class ForwardWorker : ForwardColumns {
 public:
  ForwardWorker(const AttentionParams& params, const ForwardSchedule& schedule, const ForwardScratch& scratch)
      : ForwardColumns(params, scratch, Products::query_floats(params.head_dim)),
        schedule_(schedule),
        products_(scratch),
        tiles_(params, scratch.keys, scratch.far_keys, scratch.values),
        next_tiles_(tiles_) {}

  // The items [begin, end).
  void run(int64_t begin, int64_t end) {
    [[maybe_unused]] const typename Products::Scope scope{};
    while (begin < end) {
      const int64_t stop = schedule_.stop(begin, end);
      item_ = schedule_.item(begin);
      item_.first_column = schedule_.item(stop - 1).first_column;
      has_next_ = stop < end;
      if (has_next_) start_next(schedule_.item(stop));
      run_columns((stop - begin) * schedule_.config.columns_per_item);
      begin = stop;
    }
  }

 private:
  using Context = typename Products::Context;

  void start_next(const ForwardItem& next) {
    next_ = next;
    next_sequence_ = sequence_of(params_, next.sequence);
    next_tiles_.start(next_, next_sequence_);
    has_next_ = next_.first_column < next_sequence_.seqlen_q * group_;
  }

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
      if (within(seen, kCpuKeyChunk)) continue;  // finished with its last tile
      one_by_one_ = false;
      for (int64_t panel = first; panel < end; ++panel) {
        if (seen.empty()) start_panel<Products>(panel);
        finish_panel(panel);
      }
    }
  }

  // Whether all of the keys lie in one tile, or one chunk.
  static bool within(const KeyRange& seen, int64_t keys) {
    return !seen.empty() && seen.begin / keys == (seen.end - 1) / keys;
  }

  // Panels [first_panel_, end_panel_) against the keys [begin, end) as far as they see them, chunk by chunk.
  void run_item(int64_t begin, int64_t end) {
    const KeyRange seen = keys_of_panels(first_panel_, end_panel_);
    if (seen.empty()) return;
    if (begin < seen.begin) begin = seen.begin / kCpuKeyTile * kCpuKeyTile;
    if (end > seen.end) end = seen.end;
    one_by_one_ = within(seen, kCpuKeyTile);
    while (begin < end) {
      chunk_ = begin / kCpuKeyChunk;
      const int64_t chunk_end = (chunk_ + 1) * kCpuKeyChunk, stop = chunk_end < end ? chunk_end : end;
      for_each_later_chunk([&](int64_t panel) { reset(scratch_.chunk_statistics[panel - first_panel_]); });
      for (; begin < stop; begin += kCpuKeyTile) {
        const bool first = begin <= seen.begin, last = begin + kCpuKeyTile >= seen.end;
        run_tile(begin, first, last && within(seen, kCpuKeyChunk));
      }
      for_each_later_chunk([&](int64_t panel) { join_chunk(panel); });
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
    return in_first_chunk(panel) ? outputs_of(panel) : scratch_.chunk_outputs + (panel - first_panel_) * output_size();
  }
  template <typename Body>
  void for_each_later_chunk(Body&& body) const {
    for (int64_t panel = first_panel_; panel < end_panel_; ++panel) {
      const KeyRange keys = keys_of_panels(panel, panel + 1);
      if (keys.begin < chunk_ * kCpuKeyChunk && chunk_ * kCpuKeyChunk < keys.end) body(panel);
    }
  }

  void join_chunk(int64_t panel) const {
    PanelStatistics& statistics = scratch_.statistics[panel];
    const PanelStatistics& chunk = statistics_at(panel);
    if (chunk.fresh) return;
    if (statistics.fresh) clear_panel(outputs_of(panel));
    statistics.fresh = false;
    const ChunkFactors factors = merge_statistics(statistics, chunk, F32::set1(factor_));
    merge_outputs(outputs_at(panel), head_dim_v_, factors, outputs_of(panel));
  }

  // One key tile ------------------------------------------------------------------------------------------------------

  // `starts`: the item's first tile, for which its queries are packed; `finishes`: the last one, after which its
  // results are stored. Both wait for memory, which the products of the panel before hide.
  void run_tile(int64_t first, bool starts, bool finishes) {
    const KeyTile tile = tile_at(sequence_, first);
    const bool seen = !has_terms_ || find_seen(tile);
    Context context{};
    if (seen) context = open_tile(tile);
    for (int64_t panel = first_panel_; panel < end_panel_; ++panel) {
      if (starts) start_panel<Products>(panel);
      list_ahead(first, panel, starts, finishes);
      if (seen) run_panel(context, panel);
      ahead_.rest();
      if (finishes) finish_panel(panel);
    }
  }

  // What follows on `panel` against the tile: the next panel's rows, and a share of the next tile's.
  void list_ahead(int64_t first, int64_t panel, bool starts, bool finishes) {
    ahead_.clear();
    const auto list_panel = [&](int64_t other, bool queries, bool outputs) {
      ForwardItem item = item_;
      item.first_column += other * kPanel;
      list_rows(item, sequence_, queries, outputs, ahead_);
    };
    if (finishes && panel == first_panel_) list_panel(panel, false, true);
    if (panel + 1 < end_panel_) list_panel(panel + 1, starts, finishes);
    const int64_t turn = panel - first_panel_, turns = end_panel_ - first_panel_;
    const auto list_tile = [&](const KeyTiles<Products>& tiles, const KeyTile& tile) {
      tiles.list_rows(tile, static_cast<int32_t>(tile.num_keys * turn / turns),
                      static_cast<int32_t>(tile.num_keys * (turn + 1) / turns), ahead_);
    };
    if (!finishes) return list_tile(tiles_, tile_at(sequence_, first + kCpuKeyTile));
    if (!has_next_ || first_panel_ > 0) return;
    if (panel + 1 == end_panel_) list_rows(next_, next_sequence_, true, false, ahead_);
    const MaskShape shape{next_sequence_.seqlen_q, next_sequence_.seqlen_k, params_.mask};
    const int64_t first_seen = shape.keys_of_row(next_.first_column / group_).begin;
    list_tile(next_tiles_, tile_at(next_sequence_, first_seen / kCpuKeyTile * kCpuKeyTile));
  }

  static KeyTile tile_at(const Sequence& sequence, int64_t first) {
    const int64_t rest = sequence.seqlen_k - first;
    return {static_cast<int32_t>(first), static_cast<int32_t>(rest < kCpuKeyTile ? rest < 0 ? 0 : rest : kCpuKeyTile)};
  }

  // The keys that all columns of the item see.
  KeyRange keys_of_all_columns() const {
    return {scratch_.masks[end_panel_ - 1].begin[columns_of(end_panel_ - 1) - 1], scratch_.masks[first_panel_].end[0]};
  }

  Context open_tile(const KeyTile& tile) {
    const int64_t first = tile.first;
    values_ = tiles_.values(tile);
    const KeyRange all = keys_of_all_columns();
    const bool all_seen = !has_terms_ && all.begin <= first && first + tile.num_keys <= all.end;
    values_finite_ = tiles_.values_finite(tile, values_, all_seen);

    Context context{};
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

  void start_terms(Context& context, int64_t panel) const {
    context.terms = nullptr;
    if (!has_terms_ || scratch_.seen[panel - first_panel_] == TileSeen::kAll) return;
    terms_.write(columns_at(panel).at, columns_of(panel), context.first_key, context.num_keys, scratch_.terms);
    context.terms = scratch_.terms;
  }

  void run_panel(Context& context, int64_t panel) {
    if (has_terms_ && scratch_.seen[panel - first_panel_] == TileSeen::kNone) return;
    const PanelMask& mask = scratch_.masks[panel];
    Runs runs;
    runs.count = cut_into_runs(mask, context.first_key, context.num_keys, runs.at);
    if (runs.count == 0) return;
    context.near.queries = Products::queries(queries_of(panel));
    context.far.queries = Products::queries(far_queries_of(panel));
    start_terms(context, panel);
    const float* dropout = nullptr;
    if (params_.dropout.rng_state != nullptr) {
      dropout = scratch_.dropout;
      write_dropout(params_, item_.sequence, columns_at(panel).at, columns_of(panel), context.first_key,
                    context.num_keys, scratch_.dropout);
    }

    PanelStatistics& statistics = statistics_at(panel);
    F32 largest[kNV], rescale[kNV], partial[2][kNV];
    for (F32& most : largest) most = F32::set1(-std::numeric_limits<float>::infinity());
    clear(partial);
    products_.score(context, mask, runs, largest, ahead_);
    raise_maximum(statistics, largest, F32::set1(factor_), rescale);
    products_.weigh(statistics, runs, factor_, dropout, partial, ahead_);
    add_to_sum(statistics, partial);
    const bool first = statistics.fresh;
    statistics.fresh = false;
    if (values_finite_) {
      products_.add(values_, runs, rescale, first, outputs_at(panel), ahead_);
    } else {
      const SeenKeys seen{mask, context.first_key, context.terms, dropout};
      products_.add_not_finite(values_, runs, seen, rescale, first, outputs_at(panel));
    }
  }

  const ForwardSchedule& schedule_;
  Products products_;
  KeyTiles<Products> tiles_;

  // The item that this thread takes after those at work, where it is known.
  bool has_next_ = false;
  ForwardItem next_;
  Sequence next_sequence_;
  KeyTiles<Products> next_tiles_;
  RowList ahead_;

  int64_t num_panels_;
  int64_t first_panel_, end_panel_;  // of the item that meets keys
  int64_t chunk_;
  bool has_terms_ = false;

  typename Products::Values values_;  // the tile at work
  bool values_finite_;
};

}  // namespace flagattn::FLAGATTN_ISA
