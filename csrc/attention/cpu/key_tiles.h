// Key and value tiles as the products read them: packed when a worker first needs them, kept as long as their slot is
// free, so that all columns of a head share the packing.
#pragma once

#include <cstdint>

#include "attention/cpu/row_list.h"
#include "attention/heuristics.h"
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

template <typename Products>
class KeyTiles {
 public:
  using Keys = typename Products::Keys;
  using Values = typename Products::Values;

  KeyTiles(const AttentionParams& params, const TileSlots& keys, const TileSlots& far_keys, const TileSlots& values)
      : params_(params),
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

  Keys keys(const KeyTile& tile) const { return key_operands(tile, params_.k, keys_); }
  Keys far_keys(const KeyTile& tile) const { return key_operands(tile, params_.k2, far_keys_); }

  Values values(const KeyTile& tile) const {
    Values values;
    Products::dispatch(params_.dtype, [&]<typename T>(T) {
      values = Products::values(stretches<T>(params_.v, tile), params_.v.row_stride, tile.num_keys, params_.head_dim_v,
                                claim(tile, values_), data_of(tile, values_));
    });
    return values;
  }

  // The rows [begin, end) of a tile where they are still to be packed.
  void list_rows(const KeyTile& tile, int32_t begin, int32_t end, RowList& list) const {
    const KeyTile part{tile.first + begin, end - begin};
    if (!holds(tile, keys_)) list_rows(params_.k, params_.head_dim, part, list);
    if (params_.is_piecewise() && !holds(tile, far_keys_)) list_rows(params_.k2, params_.head_dim, part, list);
    if (!holds(tile, values_)) list_rows(params_.v, params_.head_dim_v, part, list);
  }

  // Whether the values that `values` returned last may be multiplied as they are. Where all columns see all keys, what
  // is not finite belongs into every output.
  bool values_finite(const KeyTile& tile, const Values& values, bool all_seen) const {
    TileSlots::Owner& owner = owner_of(tile, values_);
    if (owner.checked) return owner.finite;
    if (all_seen) return true;
    owner = {owner.tile, true, Products::finite(values)};
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
    Products::dispatch(params_.dtype, [&]<typename T>(T) {
      for_each_stretch<T>(view, part, [&](const T* rows, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i) list.add(rows + i * view.row_stride, dim * sizeof(T));
      });
    });
  }

  template <typename T>
  auto stretches(const HeadsView& view, const KeyTile& tile) const {
    return [this, &view, &tile](auto&& body) { for_each_stretch<T>(view, tile, body); };
  }

  Keys key_operands(const KeyTile& tile, const HeadsView& view, const TileSlots& tiles) const {
    Keys operands{};
    Products::dispatch(params_.dtype, [&]<typename T>(T) {
      if (sequence_.pages == nullptr && Products::template in_place<T>(view, tile.num_keys, params_.head_dim)) {
        for_each_stretch<T>(view, tile, [&](const T* rows, int64_t, int64_t) {
          operands = Products::keys_in_place(rows, view.row_stride);
        });
        return;
      }
      float* packed = data_of(tile, tiles);
      if (claim(tile, tiles)) {
        Products::pack_keys(stretches<T>(view, tile), view.row_stride, tile.num_keys, params_.head_dim, packed);
      }
      operands = Products::packed_keys(packed, params_.head_dim);
    });
    return operands;
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
  const TileSlots keys_, far_keys_, values_;
  const int64_t tiles_per_group_;

  ForwardItem item_;
  Sequence sequence_;
};

}  // namespace flagattn::FLAGATTN_ISA
