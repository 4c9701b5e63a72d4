// Key and value tiles as the products read them: packed when a worker first needs them, kept as long as their slot is
// free, so that all columns of a head share the packing.
#pragma once

#include <cstdint>

#include "attention/cpu/outputs.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/scores.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

// Tile t of any sequence lies in slot t % slots, if `owners` says so.
struct TileSlots {
  struct Owner {
    int64_t tile;  // counted through all groups; kNone: nothing is packed
    bool checked, finite;
  };
  static constexpr int64_t kNone = -1;

  Owner* owners;
  float* data;
  int64_t slots, tile_floats;
};

// Keys [first, first + num_keys) of the sequence at work.
struct KeyTile {
  int32_t first, num_keys;
};

class KeyTiles {
 public:
  KeyTiles(const AttentionParams& params, const TileSlots& keys, const TileSlots& far_keys, const TileSlots& values)
      : params_(params),
        head_dim_(padded_dim(params.head_dim)),
        keys_(keys),
        far_keys_(far_keys),
        values_(values),
        tiles_per_group_((params.seqlen_k + kCpuKeyTile - 1) / kCpuKeyTile) {
    const TileSlots all[] = {keys, far_keys, values};
    for (const TileSlots& tiles : all) {
      for (int64_t slot = 0; slot < tiles.slots; ++slot) tiles.owners[slot] = {TileSlots::kNone, false, false};
    }
  }

  void start(const ForwardItem& item, const Sequence& sequence) {
    item_ = item;
    sequence_ = sequence;
  }

  ScoreOperands keys(const KeyTile& tile) const { return key_operands(tile, params_.k, keys_); }
  ScoreOperands far_keys(const KeyTile& tile) const { return key_operands(tile, params_.k2, far_keys_); }

  ValueTile values(const KeyTile& tile) const {
    float* strips = data_of(tile, values_);
    if (claim(tile, values_)) {
      dispatch(params_.dtype, [&]<typename T>(T) {
        for_each_stretch<T>(params_.v, tile, [&](const T* rows, int64_t offset, int64_t count) {
          pack_strips(rows, params_.v.row_stride, count, params_.head_dim_v, strips + offset * kStrip,
                      strip_stride(kCpuKeyTile));
        });
      });
    }
    return {strips, strip_stride(kCpuKeyTile), tile.num_keys, padded_dim(params_.head_dim_v)};
  }

  // The rows [begin, end) of a tile where they are still to be packed.
  void list_rows(const KeyTile& tile, int32_t begin, int32_t end, RowList& list) const {
    const KeyTile part{tile.first + begin, end - begin};
    if (!holds(tile, keys_)) list_rows(params_.k, params_.head_dim, part, list);
    if (params_.is_piecewise() && !holds(tile, far_keys_)) list_rows(params_.k2, params_.head_dim, part, list);
    if (!holds(tile, values_)) list_rows(params_.v, params_.head_dim_v, part, list);
  }

  // Of the tile that `values` returned last.
  bool values_finite(const KeyTile& tile, const ValueTile& values) const {
    TileSlots::Owner& owner = owner_of(tile, values_);
    if (!owner.checked) owner.finite = all_finite(values);
    owner.checked = true;
    return owner.finite;
  }

 private:
  // Where the keys are: calls body(rows, offset, count) for stretches of the tile whose rows lie row_stride apart,
  // `offset` keys behind the tile's first.
  template <typename T, typename Body>
  void for_each_stretch(const HeadsView& view, const KeyTile& tile, Body&& body) const {
    const T* head = static_cast<const T*>(view.data) + item_.head_k * view.head_stride;
    flagattn::for_each_stretch(sequence_, tile.first, tile.num_keys, [&](int64_t done, int64_t count, KeyPlace place) {
      body(head + place.offset(view), done, count);
    });
  }

  void list_rows(const HeadsView& view, int64_t dim, const KeyTile& part, RowList& list) const {
    dispatch(params_.dtype, [&]<typename T>(T) {
      for_each_stretch<T>(view, part, [&](const T* rows, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i) list.add(rows + i * view.row_stride, dim * sizeof(T));
      });
    });
  }

  // Keys that need neither widening nor padding are read where they lie, unless their rows are so far apart that a tile
  // spreads over many more pages and cache sets than it fills.
  bool in_place(const KeyTile& tile, const HeadsView& view) const {
    constexpr int64_t kMostStride = 512 / sizeof(float);
    return params_.dtype == DType::kFloat32 && view.row_stride <= kMostStride && tile.num_keys % kMR == 0 &&
           params_.head_dim == head_dim_ && sequence_.pages == nullptr;
  }

  ScoreOperands key_operands(const KeyTile& tile, const HeadsView& view, const TileSlots& tiles) const {
    if (in_place(tile, view)) {
      ScoreOperands operands{nullptr, view.row_stride, nullptr};
      for_each_stretch<float>(view, tile, [&](const float* rows, int64_t, int64_t) { operands.keys = rows; });
      return operands;
    }
    float* packed = data_of(tile, tiles);
    if (claim(tile, tiles)) {
      dispatch(params_.dtype, [&]<typename T>(T) {
        for_each_stretch<T>(view, tile, [&](const T* rows, int64_t offset, int64_t count) {
          const bool last = offset + count == tile.num_keys;
          const int64_t padded = last ? strip_ceil(tile.num_keys) - offset : count;
          pack_rows(rows, view.row_stride, count, padded, params_.head_dim, packed + offset * head_dim_, head_dim_);
        });
      });
    }
    return {packed, head_dim_, nullptr};
  }

  // Slots ---------------------------------------------------------------------------------------------------------

  static int64_t slot_of(const KeyTile& tile, const TileSlots& tiles) { return tile.first / kCpuKeyTile % tiles.slots; }
  static float* data_of(const KeyTile& tile, const TileSlots& tiles) {
    return tiles.data + slot_of(tile, tiles) * tiles.tile_floats;
  }
  static TileSlots::Owner& owner_of(const KeyTile& tile, const TileSlots& tiles) {
    return tiles.owners[slot_of(tile, tiles)];
  }
  // True where the slot held another tile: it is to be packed.
  bool claim(const KeyTile& tile, const TileSlots& tiles) const {
    if (holds(tile, tiles)) return false;
    owner_of(tile, tiles) = {number_of(tile), false, false};
    return true;
  }
  bool holds(const KeyTile& tile, const TileSlots& tiles) const {
    return owner_of(tile, tiles).tile == number_of(tile);
  }
  int64_t number_of(const KeyTile& tile) const { return item_.group * tiles_per_group_ + tile.first / kCpuKeyTile; }

  const AttentionParams& params_;
  const int64_t head_dim_;  // padded
  const TileSlots keys_, far_keys_, values_;
  const int64_t tiles_per_group_;

  ForwardItem item_;
  Sequence sequence_;
};

}  // namespace flagattn::FLAGATTN_ISA
