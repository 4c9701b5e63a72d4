// One part of the attention backward: its columns in blocks, every block against all the key tiles it sees.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_block.h"
#include "attention/cpu/backward_products.h"
#include "attention/cpu/backward_scores.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/backward_unseen.h"
#include "attention/cpu/dropout.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/score_terms.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardWorker : BackwardBlock {
 public:
  static size_t scratch_bytes(const AttentionParams& params) {
    BackwardLayout layout;
    carve(params, backward_most_columns(params.head_dim, params.head_dim_v), nullptr, layout);
    return layout.total;
  }

  // Before a thread's first part: nothing is packed yet.
  static void start(const AttentionParams& params, void* scratch) {
    BackwardLayout layout;
    const BackwardScratch carved = carve(params, kBackwardBlock, static_cast<char*>(scratch), layout);
    const TileCache caches[] = {carved.near.keys, carved.far.keys, carved.values};
    for (const TileCache& cache : caches) {
      for (int64_t slot = 0; slot < cache.slots; ++slot) cache.owners[slot] = {nullptr, 0, true};
    }
  }

  BackwardWorker(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
                 const KeyGradients& share)
      : BackwardBlock(params, part, scratch, share) {}

  void run() {
    const int64_t last = part_.num_columns - 1;
    for (int64_t begin = last / layout_.columns * layout_.columns; last >= 0 && begin >= 0; begin -= layout_.columns) {
      dispatch(forward_.dtype, [&]<typename T>(T) { run_block<T>(begin); });
    }
  }

 private:
  template <typename T>
  void run_block(int64_t first_column) {
    start_block<T>(first_column);
    const TileRange tiles = tiles_of_block();
    for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
      if (start_tile(tile)) run_tile<T>(tile);
    }
    const int64_t panel_floats = kPanel * forward_.head_dim;
    write_dqueries<T>(params_.dq, scratch_.near.dqueries, panel_floats);
    if (piecewise_) write_dqueries<T>(params_.dq2, scratch_.far.dqueries, panel_floats);
  }

  struct TileRows {
    const float* rows;
    int64_t stride;
    bool finite;
  };

  // Key tiles ---------------------------------------------------------------------------------------------------------

  template <typename T>
  void run_tile(int64_t tile) {
    if (near_seen_) near_ = pack_tile<T>(forward_.k, forward_.head_dim, tile, scratch_.near.keys);
    if (far_seen_) far_ = pack_tile<T>(forward_.k2, forward_.head_dim, tile, scratch_.far.keys);
    values_ = pack_tile<T>(forward_.v, forward_.head_dim_v, tile, scratch_.values);

    for (int64_t i = 0; i < num_panels_; ++i) {
      fetch_sums(i, num_panels_);
      run_panel(i);
    }
    add_product(&BackwardPanel::seen, douts_finite_, scratch_.weights, scratch_.dout_rows, forward_.head_dim_v, dv_);
    if (near_seen_) {
      add_product(piecewise_ ? &BackwardPanel::near : &BackwardPanel::seen, queries_finite_, scratch_.near.dscores,
                  scratch_.near.query_rows, forward_.head_dim, dk_);
    }
    if (far_seen_) {
      add_product(&BackwardPanel::far, far_queries_finite_, scratch_.far.dscores, scratch_.far.query_rows,
                  forward_.head_dim, dk2_);
    }
  }

  template <typename T>
  TileRows pack_tile(const HeadsView& view, int64_t dim, int64_t tile, const TileCache& cache) const {
    const int64_t slot = tile % cache.slots;
    float* rows = cache.data + slot * kBackwardKeyTile * cache.stride;
    const T* src = key_row<T>(view, first_key_);
    TileCache::Owner& owner = cache.owners[slot];
    if (owner.rows != src || owner.num_rows != num_keys_) {
      pack_rows(src, view.row_stride, num_keys_, round_up_to(num_keys_, kMR), dim, rows, cache.stride);
      owner = {src, num_keys_, all_finite(rows, cache.stride, num_keys_, dim)};
    }
    return {rows, cache.stride, owner.finite};
  }

  // P and dS of one panel against the tile, and its dQ.
  void run_panel(int64_t index) {
    BackwardPanel& panel = panels_[index];
    std::memset(panel.seen, 0, sizeof(panel.seen));
    if (piecewise_) {
      std::memset(panel.near, 0, sizeof(panel.near));
      std::memset(panel.far, 0, sizeof(panel.far));
    }
    if (has_terms_ && panel.tile_seen == TileSeen::kNone) return;
    const bool terms = has_terms_ && panel.tile_seen == TileSeen::kSome,
               dropout = forward_.dropout.rng_state != nullptr;
    if (terms) terms_.write(panel.columns, columns_of(panel), first_key_, num_keys_, scratch_.terms);
    if (dropout) {
      write_dropout(forward_, part_.sequence_index, panel.columns, columns_of(panel), first_key_, num_keys_,
                    scratch_.dropout);
    }
    const int64_t queries = index * kPanel * forward_.head_dim, scores = index * kBackwardKeyTile * kPanel;
    const auto product = [&](const TileRows& keys, const PairScratch& pair) {
      return TileProduct{keys.rows, keys.stride, pair.queries + queries, forward_.head_dim};
    };
    const float* douts = scratch_.douts + index * kPanel * forward_.head_dim_v;
    const GradientContext context = {
        .near = product(near_, scratch_.near),
        .far = piecewise_ ? product(far_, scratch_.far) : TileProduct{},
        .values = {values_.rows, values_.stride, douts, forward_.head_dim_v},
        .piecewise = piecewise_,
        .first_key = first_key_,
        .softcap_factor = softcap_factor_,
        .factor = factor_,
        .weights = scratch_.weights + scores,
        .near_dscores = scratch_.near.dscores + scores,
        .far_dscores = piecewise_ ? scratch_.far.dscores + scores : nullptr,
        .terms = terms ? scratch_.terms : nullptr,
        .dropout = dropout ? scratch_.dropout : nullptr,
        .additive = ScoreTerms::are_additive(forward_),
        .unit = unit_,
    };
    Run runs[kMostRuns];
    const int num_runs = cut_into_runs(panel.mask, first_key_, num_keys_, runs);
    for (int i = 0; i < num_runs; ++i) {
      with_width(runs[i].num_vectors, [&]<int NV>(Width<NV>) { run_strips<NV>(context, panel, runs[i], queries); });
    }
  }

  template <int NV>
  void run_strips(const GradientContext& context, BackwardPanel& panel, const Run& run, int64_t queries) {
    const int column = run.first_vector * F32::kLanes, end = column + NV * F32::kLanes;
    int32_t near_begin = run.begin, far_end = run.begin;
    for (int32_t key = run.begin; key < run.end; key += kMR) {
      const StripKind kind = kind_of<NV>(context, panel.mask, key, column);
      score_strip<NV>(context, kind, key, column);
      if (kind != StripKind::kNear) far_end = key + kMR;
      if (kind == StripKind::kFar) near_begin = key + kMR;
    }
    for (int32_t key = run.begin; key < run.end; key += kMR) {
      differentiate_strip<NV>(context, kind_of<NV>(context, panel.mask, key, column), key, column);
    }
    // Clear strips of one kind are weighed together.
    int32_t waiting = run.begin;
    const auto weigh = [&](int32_t end, StripKind kind) {
      if (waiting < end) {
        weigh_clear_keys<NV>(panel, factor_, waiting, end, column, context.weights,
                             kind == StripKind::kFar ? context.far_dscores : context.near_dscores);
      }
      waiting = end;
    };
    for (int32_t key = run.begin; key < run.end; key += kMR) {
      const StripKind kind = kind_of<NV>(context, panel.mask, key, column);
      const bool clear_strip = key >= run.clear_begin && key < run.clear_end;
      set_ranges(panel, key, column, end, clear_strip);
      if (key == near_begin) weigh(key, StripKind::kFar);
      if (clear_strip && kind != StripKind::kBorder && context.has_clear_keys()) continue;
      weigh(key, kind);
      weigh_edge_strip<NV>(context, panel, kind, key, column);
      waiting = key + kMR;
    }
    weigh(run.end, near_begin < run.end ? StripKind::kNear : StripKind::kFar);
    if (near_begin < run.end) {
      add_dqueries<NV>(near_, context.near_dscores, column, near_begin, run.end, scratch_.near.dqueries + queries);
    }
    if (run.begin < far_end) {
      add_dqueries<NV>(far_, context.far_dscores, column, run.begin, far_end, scratch_.far.dqueries + queries);
    }
  }

  template <int NV>
  void add_dqueries(const TileRows& keys, const float* dscores, int column, int32_t begin, int32_t end,
                    float* dqueries) const {
    if (keys.finite || all_seen_) {
      add_to_dqueries<NV>(keys.rows, keys.stride, dscores, column, begin, end, forward_.head_dim, dqueries);
    } else {
      add_seen_to_dqueries<NV>(keys.rows, keys.stride, dscores, column, begin, end, forward_.head_dim, dqueries);
    }
  }

  // Which columns the products of dK and dV take in for one strip.
  void set_ranges(BackwardPanel& panel, int32_t key, int begin, int end, bool clear_strip) const {
    const int strip = key / kMR;
    const int32_t first = first_key_ + key;
    ColumnRange seen{static_cast<uint8_t>(begin), static_cast<uint8_t>(end)};
    if (!clear_strip) seen = seeing_columns(panel.mask, first, begin, end);
    panel.seen[strip] = whole_quads(seen);
    if (!piecewise_) return;
    ColumnRange near = seen, far = seen;
    while (near.end > near.begin && panel.mask.far_end[near.end - 1] >= first + kMR) --near.end;
    while (far.begin < far.end && panel.mask.far_end[far.begin] <= first) ++far.begin;
    panel.near[strip] = whole_quads(near);
    panel.far[strip] = whole_quads(far);
  }

  // Columns of [begin, end) that see some of the keys [key, key + kMR).
  static ColumnRange seeing_columns(const PanelMask& mask, int32_t key, int begin, int end) {
    while (begin < end && mask.end[begin] <= key) ++begin;
    while (end > begin && mask.begin[end - 1] >= key + kMR) --end;
    return {static_cast<uint8_t>(begin), static_cast<uint8_t>(end)};
  }
  static ColumnRange whole_quads(ColumnRange range) {
    if (range.begin >= range.end) return {0, 0};
    return {static_cast<uint8_t>(range.begin / 4 * 4), static_cast<uint8_t>((range.end + 3) / 4 * 4)};
  }

  // dV or dK of the tile: dims in strips, so that a strip of `rows` stays in L1 while the keys pass.
  void add_product(StripRanges ranges, bool finite, const float* scores, const float* rows, int64_t dim,
                   float* sums) const {
    const int64_t ld = round_up_to(dim, KeyGradients::kRowQuantum);
    const Strips strips((dim + F32::kLanes - 1) / F32::kLanes);
    for (int64_t i = 0; i < strips.count; ++i) {
      const float* strip_rows = rows + strips.offset(i, layout_.columns);
      float* strip_sums = sums + strips.first(i) * F32::kLanes;
      with_width(strips.width(i), [&]<int NV>(Width<NV>) {
        for (int strip = 0; strip * kMR < num_keys_; ++strip) {
          float* at = strip_sums + strip * kMR * ld;
          if (finite || all_seen_) {
            add_to_keys<NV>(panels_, num_panels_, ranges, strip, scores, strip_rows, at, ld);
          } else {
            add_seen_to_keys<NV>(panels_, num_panels_, ranges, strip, scores, strip_rows, at, ld);
          }
        }
      });
    }
  }

  TileRows near_{}, far_{}, values_{};  // of the tile
};

}  // namespace flagattn::FLAGATTN_ISA
