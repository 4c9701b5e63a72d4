// One part of the attention backward: its columns in blocks, every block against all the key tiles it sees.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_kernels.h"
#include "attention/cpu/backward_pack.h"
#include "attention/cpu/backward_products.h"
#include "attention/cpu/backward_scores.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/dropout.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/score_terms.h"
#include "attention/mask.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardWorker {
 public:
  // Before a thread's first part: nothing is packed yet.
  static void start(const AttentionParams& params, void* scratch) {
    BackwardLayout layout;
    const BackwardScratch carved = carve(params, kBackwardQuantum, static_cast<char*>(scratch), layout);
    const TileCache caches[] = {carved.near.keys, carved.far.keys, carved.values};
    for (const TileCache& cache : caches) {
      for (int64_t slot = 0; slot < cache.slots; ++slot) cache.owners[slot] = {nullptr, 0};
    }
  }

  BackwardWorker(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
                 const KeyGradients& share)
      : params_(params),
        forward_(params.forward),
        part_(part),
        group_(params.forward.heads_q / params.forward.heads_k),
        piecewise_(params.forward.is_piecewise()),
        share_(share) {
    const int64_t columns =
        backward_block_columns(part.num_columns, backward_most_columns(forward_.head_dim, forward_.head_dim_v));
    scratch_ = carve(forward_, columns, static_cast<char*>(scratch), layout_);
    softcap_factor_ = forward_.softcap > 0.0f ? forward_.softmax_scale / forward_.softcap : 0.0f;
    factor_ = forward_.softcap > 0.0f ? forward_.softcap : forward_.softmax_scale;
    if (ScoreTerms::are_additive(forward_)) {
      unit_ = factor_;
      factor_ = 1.0f;
    }
    if (ScoreTerms::exist(forward_)) {
      terms_ = ScoreTerms(forward_, part.sequence_index, part.sequence.seqlen_q, part.sequence.seqlen_k);
      has_terms_ = !terms_.empty();
    }
  }

  void run() {
    const int64_t last = part_.num_columns - 1;
    for (int64_t begin = last / layout_.columns * layout_.columns; last >= 0 && begin >= 0; begin -= layout_.columns) {
      const int64_t rest = part_.num_columns - begin;
      first_column_ = part_.first_column + begin;
      num_columns_ = rest < layout_.columns ? rest : layout_.columns;
      dispatch(forward_.dtype, [&]<typename T>(T) { run_block<T>(); });
    }
  }

 private:
  template <typename T>
  void run_block() {
    start_block<T>();
    const BackwardPanel& last = scratch_.panels[num_panels_ - 1];
    const int64_t end = last.mask.end[last.num_vectors * F32::kLanes - 1];
    for (int64_t tile = scratch_.panels[0].mask.begin[0] / kBackwardKeyTile; tile * kBackwardKeyTile < end; ++tile) {
      run_tile<T>(tile);
    }
    finish_block<T>(params_.dq, scratch_.near.dqueries);
    if (piecewise_) finish_block<T>(params_.dq2, scratch_.far.dqueries);
  }

  struct TileRows {
    const float* rows;
    int64_t stride;
  };

  // Columns -----------------------------------------------------------------------------------------------------------

  Column column(int64_t in_block) const {
    const int64_t number = first_column_ + in_block;
    return {number / group_, part_.head_k * group_ + number % group_};
  }
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
  int columns_of(const BackwardPanel& panel) const {
    const int64_t rest = num_columns_ - panel.first_column;
    const int most = panel.num_vectors * F32::kLanes;
    return rest < most ? static_cast<int>(rest) : most;
  }

  // Blocks ------------------------------------------------------------------------------------------------------------

  template <typename T>
  void start_block() {
    const Strips panels((num_columns_ + F32::kLanes - 1) / F32::kLanes);
    num_panels_ = panels.count;
    for (int64_t i = 0; i < num_panels_; ++i) {
      BackwardPanel& panel = scratch_.panels[i];
      panel.first_column = panels.first(i) * F32::kLanes;
      panel.num_vectors = panels.width(i);
      start_masks(panel);
      start_rows<T>(panel, i);
    }
    const int64_t floats = num_panels_ * kPanel * forward_.head_dim;
    std::memset(scratch_.near.dqueries, 0, static_cast<size_t>(floats) * sizeof(float));
    if (piecewise_) std::memset(scratch_.far.dqueries, 0, static_cast<size_t>(floats) * sizeof(float));
  }

  void start_masks(BackwardPanel& panel) const {
    const MaskShape shape{part_.sequence.seqlen_q, part_.sequence.seqlen_k, forward_.mask};
    const int last = columns_of(panel) - 1;
    for (int c = 0; c < kPanel; ++c) {
      // Columns that fill up the last vector repeat the last one's mask and add no edge; further vectors see nothing.
      panel.columns[c] = column(panel.first_column + (c < last ? c : last));
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

  // Packs the panel's rows. A column whose LSE is -inf takes no gradient: its operands are taken as zero, whatever they
  // hold.
  template <typename T>
  void start_rows(BackwardPanel& panel, int64_t index) {
    const int64_t dim = forward_.head_dim, dim_v = forward_.head_dim_v;
    const T *q[kPanel] = {}, *q2[kPanel] = {}, *dout[kPanel] = {}, *out[kPanel] = {};
    for (int c = 0; c < kPanel; ++c) {
      panel.lse[c] = kNoWeight;
      panel.delta[c] = 0.0f;
      if (c >= columns_of(panel)) continue;
      const Column at = column(panel.first_column + c);
      const float lse = statistic_of(forward_.lse, at);
      if (forward_.sinks != nullptr) statistic_at(params_.dsink_shares, at) = 0.0f;
      if (lse == -std::numeric_limits<float>::infinity()) continue;
      q[c] = row_of<const T>(forward_.q, at);
      if (piecewise_) q2[c] = row_of<const T>(forward_.q2, at);
      dout[c] = row_of<const T>(params_.dout, at);
      out[c] = row_of<const T>(forward_.out, at);
      panel.lse[c] = lse;
      panel.delta[c] = params_.dlse.data == nullptr ? 0.0f : statistic_of(params_.dlse, at);
    }
    const int64_t used = panel.num_vectors * F32::kLanes;
    pack_columns(q, dim, 1.0f, scratch_.near.queries + index * kPanel * dim);
    pack_dim_strips(q, used, dim, scratch_.near.query_rows, panel.first_column, layout_.columns);
    if (piecewise_) {
      pack_columns(q2, dim, 1.0f, scratch_.far.queries + index * kPanel * dim);
      pack_dim_strips(q2, used, dim, scratch_.far.query_rows, panel.first_column, layout_.columns);
    }
    pack_columns(dout, dim_v, 1.0f, scratch_.douts + index * kPanel * dim_v);
    pack_columns(out, dim_v, 1.0f, scratch_.outs);
    finish_delta(scratch_.douts + index * kPanel * dim_v, scratch_.outs, dim_v, panel.delta);
    pack_dim_strips(dout, used, dim_v, scratch_.dout_rows, panel.first_column, layout_.columns);
    if (forward_.sinks != nullptr) write_sink_shares(panel);
  }

  // A sink is a key of weight exp(sink - lse) whose dP is 0, since its value is.
  void write_sink_shares(const BackwardPanel& panel) const {
    for (int c = 0; c < columns_of(panel); ++c) {
      if (panel.lse[c] == kNoWeight) continue;
      const Column& at = panel.columns[c];
      const double weight = ::exp(static_cast<double>(forward_.sinks[at.head]) - panel.lse[c]);
      statistic_at(params_.dsink_shares, at) = static_cast<float>(-weight * panel.delta[c]);
    }
  }

  template <typename T>
  void finish_block(const HeadsView& view, const float* dqueries) const {
    float factors[kPanel];
    for (float& factor : factors) factor = forward_.softmax_scale;
    for (int64_t i = 0; i < num_panels_; ++i) {
      const BackwardPanel& panel = scratch_.panels[i];
      T* rows[kPanel] = {};
      for (int c = 0; c < columns_of(panel); ++c) {
        T* row = row_of<T>(view, column(panel.first_column + c));
        if (panel.lse[c] == kNoWeight) {
          std::memset(row, 0, static_cast<size_t>(forward_.head_dim) * sizeof(T));
        } else {
          rows[c] = row;
        }
      }
      unpack_columns(dqueries + i * kPanel * forward_.head_dim, forward_.head_dim, factors, rows);
    }
  }

  // Key tiles ---------------------------------------------------------------------------------------------------------

  template <typename T>
  void run_tile(int64_t tile) {
    const int64_t first = tile * kBackwardKeyTile, rest = part_.sequence.seqlen_k - first;
    first_key_ = static_cast<int32_t>(first);
    num_keys_ = static_cast<int32_t>(rest < kBackwardKeyTile ? rest : kBackwardKeyTile);
    if (has_terms_ && !find_seen()) return;
    const BackwardPanel& last = scratch_.panels[num_panels_ - 1];
    const bool far = piecewise_ && first < last.mask.far_end[last.num_vectors * F32::kLanes - 1];
    const bool near = !piecewise_ || first + num_keys_ > scratch_.panels[0].mask.far_end[0];
    touch(tile, near, far);
    if (near)
      near_ = {pack_tile<T>(forward_.k, forward_.head_dim, tile, scratch_.near.keys), scratch_.near.keys.stride};
    if (far) far_ = {pack_tile<T>(forward_.k2, forward_.head_dim, tile, scratch_.far.keys), scratch_.far.keys.stride};
    values_ = {pack_tile<T>(forward_.v, forward_.head_dim_v, tile, scratch_.values), scratch_.values.stride};

    for (int64_t i = 0; i < num_panels_; ++i) run_panel(i);

    const int64_t ld = round_up_to(forward_.head_dim, KeyGradients::kRowQuantum);
    const int64_t ld_v = round_up_to(forward_.head_dim_v, KeyGradients::kRowQuantum);
    add_product(&BackwardPanel::seen, scratch_.weights, scratch_.dout_rows, forward_.head_dim_v,
                share_.dv + first * ld_v);
    const StripRanges near_ranges = piecewise_ ? &BackwardPanel::near : &BackwardPanel::seen;
    if (near) {
      add_product(near_ranges, scratch_.near.dscores, scratch_.near.query_rows, forward_.head_dim,
                  share_.dk + first * ld);
    }
    if (far) {
      add_product(&BackwardPanel::far, scratch_.far.dscores, scratch_.far.query_rows, forward_.head_dim,
                  share_.dk2 + first * ld);
    }
  }

  // How much of the tile every panel of the block sees; false where none sees any.
  bool find_seen() const {
    bool any = false;
    for (int64_t i = 0; i < num_panels_; ++i) {
      BackwardPanel& panel = scratch_.panels[i];
      panel.tile_seen = terms_.seen(panel.columns, columns_of(panel), first_key_, num_keys_);
      any = any || panel.tile_seen != TileSeen::kNone;
    }
    return any;
  }

  template <typename T>
  const float* pack_tile(const HeadsView& view, int64_t dim, int64_t tile, const TileCache& cache) const {
    const int64_t slot = tile % cache.slots;
    float* rows = cache.data + slot * kBackwardKeyTile * cache.stride;
    const T* src = key_row<T>(view, first_key_);
    TileCache::Owner& owner = cache.owners[slot];
    if (owner.rows != src || owner.num_rows != num_keys_) {
      pack_rows(src, view.row_stride, num_keys_, round_up_to(num_keys_, kMR), dim, rows, cache.stride);
      owner = {src, num_keys_};
    }
    return rows;
  }

  template <typename T>
  const T* key_row(const HeadsView& view, int64_t key) const {
    return static_cast<const T*>(view.data) + part_.sequence.batch * view.batch_stride +
           (part_.sequence.first_k + key) * view.row_stride + part_.head_k * view.head_stride;
  }

  // Sums of a tile begin at zero when the part first meets it.
  void touch(int64_t tile, bool near, bool far) {
    const auto zero = [&](float* rows, int64_t dim) {
      const int64_t floats = kBackwardKeyTile * round_up_to(dim, KeyGradients::kRowQuantum);
      std::memset(rows + tile * floats, 0, static_cast<size_t>(floats) * sizeof(float));
    };
    uint8_t& touched = share_.touched[tile];
    if (touched == 0) zero(share_.dv, forward_.head_dim_v);
    if (near && !(touched & KeyGradients::kNear)) zero(share_.dk, forward_.head_dim);
    if (far && !(touched & KeyGradients::kFar)) zero(share_.dk2, forward_.head_dim);
    touched = static_cast<uint8_t>(touched | (near ? KeyGradients::kNear : 0) | (far ? KeyGradients::kFar : 0));
  }

  // P and dS of one panel against the tile, and its dQ.
  void run_panel(int64_t index) {
    BackwardPanel& panel = scratch_.panels[index];
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
      multiply_strip<NV>(context, kind, key, column);
      if (kind != StripKind::kNear) far_end = key + kMR;
      if (kind == StripKind::kFar) near_begin = key + kMR;
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
      add_to_dqueries<NV>(near_.rows, near_.stride, context.near_dscores, column, near_begin, run.end,
                          forward_.head_dim, scratch_.near.dqueries + queries);
    }
    if (run.begin < far_end) {
      add_to_dqueries<NV>(far_.rows, far_.stride, context.far_dscores, column, run.begin, far_end, forward_.head_dim,
                          scratch_.far.dqueries + queries);
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
  void add_product(StripRanges ranges, const float* scores, const float* rows, int64_t dim, float* sums) const {
    const int64_t ld = round_up_to(dim, KeyGradients::kRowQuantum);
    const Strips strips((dim + F32::kLanes - 1) / F32::kLanes);
    for (int64_t i = 0; i < strips.count; ++i) {
      const float* strip_rows = rows + strips.offset(i, layout_.columns);
      float* strip_sums = sums + strips.first(i) * F32::kLanes;
      with_width(strips.width(i), [&]<int NV>(Width<NV>) {
        for (int strip = 0; strip * kMR < num_keys_; ++strip) {
          add_to_keys<NV>(scratch_.panels, num_panels_, ranges, strip, scores, strip_rows,
                          strip_sums + strip * kMR * ld, ld);
        }
      });
    }
  }

  const AttentionBackwardParams& params_;
  const AttentionParams& forward_;
  const BackwardPart& part_;
  const int64_t group_;
  const bool piecewise_;
  const KeyGradients& share_;
  BackwardLayout layout_;
  BackwardScratch scratch_;
  float factor_, softcap_factor_;
  float unit_ = 1.0f;  // of scores before biases are added
  ScoreTerms terms_;
  bool has_terms_ = false;

  int64_t first_column_ = 0, num_columns_ = 0, num_panels_ = 0;  // of the block
  int32_t first_key_ = 0, num_keys_ = 0;                         // of the tile
  TileRows near_{}, far_{}, values_{};
};

}  // namespace flagattn::FLAGATTN_ISA
