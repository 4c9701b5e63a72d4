// The key tile that a block of the attention backward meets: which of its keys are seen, and its sums of dK and dV.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/backward_schedule.h"
#include "attention/cpu/backward_columns.h"
#include "attention/cpu/backward_kernels.h"
#include "attention/cpu/score_terms.h"

namespace flagattn::FLAGATTN_ISA {

class BackwardKeyTile : protected BackwardColumns {
 protected:
  BackwardKeyTile(const AttentionBackwardParams& params, const BackwardPart& part, const KeyGradients& share)
      : BackwardColumns(params, part), share_(share) {}

  // Tiles [first, end) are all that the block sees.
  struct TileRange {
    int64_t first, end;
  };
  TileRange tiles_of_block() const {
    const int64_t end = back().mask.end[last_column_of(back())];
    return {panels_[0].mask.begin[0] / kBackwardKeyTile, (end + kBackwardKeyTile - 1) / kBackwardKeyTile};
  }

  // False where the block sees nothing of the tile.
  bool start_tile(int64_t tile) {
    const int64_t first = tile * kBackwardKeyTile, rest = part_.sequence.seqlen_k - first;
    first_key_ = static_cast<int32_t>(first);
    num_keys_ = static_cast<int32_t>(rest < kBackwardKeyTile ? rest : kBackwardKeyTile);
    if (has_terms_ && !find_seen()) return false;
    far_seen_ = piecewise_ && first < back().mask.far_end[last_column_of(back())];
    near_seen_ = !piecewise_ || first + num_keys_ > panels_[0].mask.far_end[0];
    touch(tile);
    const int64_t ld = round_up_to(forward_.head_dim, KeyGradients::kRowQuantum);
    ld_v_ = round_up_to(forward_.head_dim_v, KeyGradients::kRowQuantum);
    ld_ = ld;
    dv_ = share_.dv + first * ld_v_;
    dk_ = share_.dk + first * ld;
    dk2_ = share_.dk2 + first * ld;
    all_seen_ = all_seen();
    return true;
  }

  // The tile's sums are far away where a sequence is long: they arrive, in `count` portions, while P and dS are
  // computed.
  void fetch_sums(int64_t portion, int64_t count) const {
    fetch_sums(dv_, ld_v_, portion, count);
    if (near_seen_) fetch_sums(dk_, ld_, portion, count);
    if (far_seen_) fetch_sums(dk2_, ld_, portion, count);
  }

  template <typename T>
  const T* key_row(const HeadsView& view, int64_t key) const {
    return static_cast<const T*>(view.data) + part_.sequence.batch * view.batch_stride +
           (part_.sequence.first_k + key) * view.row_stride + part_.head_k * view.head_stride;
  }

  // Of the tile.
  int32_t first_key_ = 0, num_keys_ = 0;
  bool near_seen_ = true, far_seen_ = false;
  bool all_seen_ = false;
  float *dv_ = nullptr, *dk_ = nullptr, *dk2_ = nullptr;  // [key][dims], rows of ld_v_ and ld_
  int64_t ld_ = 0, ld_v_ = 0;

 private:
  const BackwardPanel& back() const { return panels_[num_panels_ - 1]; }
  static int last_column_of(const BackwardPanel& panel) { return panel.num_vectors * F32::kLanes - 1; }

  // Whether every column sees every key of the tile, on one side where attention is piecewise: nothing must be left out
  // of the products then, finite or not.
  bool all_seen() const {
    if (has_terms_ || forward_.dropout.rng_state != nullptr) return false;
    const PanelMask &front = panels_[0].mask, &last = back().mask;
    const int column = last_column_of(back());
    const int32_t end = first_key_ + num_keys_;
    const bool one_side = !piecewise_ || last.far_end[column] <= first_key_ || front.far_end[0] >= end;
    return one_side && last.begin[column] <= first_key_ && end <= front.end[0];
  }

  static void fetch_sums(const float* sums, int64_t ld, int64_t portion, int64_t count) {
    const int64_t lines = kBackwardKeyTile * ld / 16;
    for (int64_t i = lines * portion / count; i < lines * (portion + 1) / count; ++i) {
      __builtin_prefetch(sums + i * 16, /*to write*/ 1, /*into L2*/ 2);
    }
  }

  // How much of the tile every panel of the block sees; false where none sees any.
  bool find_seen() const {
    bool any = false;
    for (int64_t i = 0; i < num_panels_; ++i) {
      BackwardPanel& panel = panels_[i];
      panel.tile_seen = terms_.seen(panel.columns, columns_of(panel), first_key_, num_keys_);
      any = any || panel.tile_seen != TileSeen::kNone;
    }
    return any;
  }

  // Sums of a tile begin at zero when the part first meets it.
  void touch(int64_t tile) {
    const auto zero = [&](float* rows, int64_t dim) {
      const int64_t floats = kBackwardKeyTile * round_up_to(dim, KeyGradients::kRowQuantum);
      std::memset(rows + tile * floats, 0, static_cast<size_t>(floats) * sizeof(float));
    };
    uint8_t& touched = share_.touched[tile];
    if (touched == 0) zero(share_.dv, forward_.head_dim_v);
    if (near_seen_ && !(touched & KeyGradients::kNear)) zero(share_.dk, forward_.head_dim);
    if (far_seen_ && !(touched & KeyGradients::kFar)) zero(share_.dk2, forward_.head_dim);
    touched =
        static_cast<uint8_t>(touched | (near_seen_ ? KeyGradients::kNear : 0) | (far_seen_ ? KeyGradients::kFar : 0));
  }

  const KeyGradients& share_;
};

}  // namespace flagattn::FLAGATTN_ISA
