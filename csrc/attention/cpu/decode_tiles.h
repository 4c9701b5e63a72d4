// Products of few columns in tile registers: bf16 at the amx level. Per element the chains are the forward's
// (tile_scores.h, tile_outputs.h), 32 products at a time; which operand lies in A and which in B changes no bit.
//
//   scores   K [16 keys][32 dims], as it lies in the cache, times Q [32 dims in pairs][columns]
//   outputs  P [columns][32 keys] times V [32 keys in pairs][16 dims]
#pragma once

#include <cstdint>
#include <cstring>

#include "arch/simd.h"
#include "arch/simd/tiles.h"
#include "attention/cpu/decode_products.h"
#include "attention/cpu/decode_rows.h"
#include "attention/cpu/decode_scores.h"
#include "attention/mask.h"

namespace flagattn::FLAGATTN_ISA {

static_assert(kGroupKeys == kTileDepth && kGroupKeys == 2 * kTileRows);

// Weights and sums have a row for each column; scores take two tiles, whose keys are 3 and 7.
inline constexpr unsigned kColumnTiles = 1u << 4 | 1u << 5 | 1u << 6;

// Queries lie as queries[d / 2][column][d % 2]. A tile's row is longer than a row of few columns: what it reads of the
// next ones, and at last behind them, are columns that nobody asks for.

// The distance of sixteen rows in elements; 0 where they are not equally far apart.
inline int64_t common_stride(const BFloat16* const* rows) {
  const int64_t stride = rows[1] - rows[0];
  bool common = true;
  for (int i = 1; i < kTileRows; ++i) common &= rows[i] - rows[i - 1] == stride;
  return common ? stride : 0;
}

// Thirty-two dims of sixteen keys; zeros behind the last of the `rest` dims.
template <int kTile>
FLAGATTN_INLINE void load_keys(const BFloat16* const* rows, int64_t offset, int64_t stride, int64_t rest) {
  if (stride != 0 && rest >= kTileDepth) return Tile<kTile>::load(rows[0] + offset, stride);
  alignas(64) BFloat16 copy[kTileRows][kTileDepth] = {};
  const int64_t count = rest < kTileDepth ? rest : kTileDepth;
  for (int i = 0; i < kTileRows; ++i) {
    std::memcpy(copy[i], rows[i] + offset, static_cast<size_t>(count) * sizeof(BFloat16));
  }
  Tile<kTile>::load(copy[0], kTileDepth);
}

// A group of keys of one head, which `next` follows.
inline void score_group_in_tiles(const RowGroup& group, const RowGroup& next, const BFloat16* queries, int blocks,
                                 int64_t head_dim, float* scores) {
  const BFloat16* const* rows = group.typed<BFloat16>();
  const int64_t strides[] = {common_stride(rows), common_stride(rows + kTileRows)}, columns = blocks * 4;
  const RowsAhead<BFloat16> ahead(group, next, head_dim);
  Tile<0>::zero();
  Tile<1>::zero();
  for (int64_t d = 0; d < head_dim; d += kTileDepth) {
    const RowsAhead<BFloat16>::Lines lines = ahead.lines(d);
    Tile<2>::load(queries + d * columns, 2 * columns);
    load_keys<3>(rows, group.offset + d, strides[0], head_dim - d);
    Tile<0>::add_product<3, 2>();
    FLAGATTN_UNROLL for (int row = 0; row < kTileRows; ++row) lines.fetch(row);
    load_keys<7>(rows + kTileRows, group.offset + d, strides[1], head_dim - d);
    Tile<1>::add_product<7, 2>();
    FLAGATTN_UNROLL for (int row = kTileRows; row < kGroupKeys; ++row) lines.fetch(row);
  }
  alignas(64) float by_key[kGroupKeys][kTileCols];
  Tile<0>::store(by_key[0], kTileCols);
  Tile<1>::store(by_key[kTileRows], kTileCols);
  for (int b = 0; b < blocks; ++b) {
    for (int key = 0; key < kGroupKeys; ++key) {
      std::memcpy(scores + b * kBlockScores + key * 4, by_key[key] + b * 4, 4 * sizeof(float));
    }
  }
}

// A group of values of one head.
class ValuesInTiles {
 public:
  // Keys `seen` of the group count; weights[block][key][4] are those of its first key.
  ValuesInTiles(const RowGroup& group, const KeyRange& seen, const float* weights, int columns)
      : rows_(group.typed<BFloat16>()), offset_(group.offset), seen_(seen), columns_(columns) {
    for (int c = 0; c < columns; ++c) {
      const float* from = weights + c / 4 * kBlockScores + c % 4;
      alignas(64) float halves[2][kTileRows];
      for (int key = 0; key < kGroupKeys; ++key) halves[key % 2][key / 2] = sees(key) ? from[key * 4] : 0.0f;
      store_pairs(F32::load(halves[0]), F32::load(halves[1]), weights_[c]);
    }
  }

  // sums[column][d ...] (+)= the group's. Where not all columns see the same keys `keys_of(column)` tells which, and
  // what is not finite is added to those that see it alone: any order of adding it gives the same.
  template <typename KeysOf>
  void add(const RowsAhead<BFloat16>& ahead, int64_t head_dim, bool further, bool alike, const KeysOf& keys_of,
           float* sums, int64_t ld) {
    Tile<4>::load(weights_[0], kTileDepth);
    alignas(64) BFloat16 pairs[2][2][kTileRows * kTileDepth];
    // The values of the next dims are laid out while those before are multiplied.
    for (int64_t d = 0; d < head_dim + kTileDepth; d += kTileDepth) {
      if (d < head_dim) lay_out(ahead.lines(d), d, head_dim - d, pairs[d / kTileDepth % 2]);
      if (d == 0) continue;
      const int64_t before = d - kTileDepth;
      BFloat16(&ready)[2][kTileRows * kTileDepth] = pairs[before / kTileDepth % 2];
      const bool finite = alike || make_finite(ready);
      multiply<5>(ready[0], further, sums + before, ld);
      if (before + kTileCols < ld) multiply<6>(ready[1], further, sums + before + kTileCols, ld);
      if (!finite) add_what_is_not_finite(before, d < head_dim ? d : head_dim, keys_of, sums, ld);
    }
  }

 private:
  bool sees(int64_t key) const { return seen_.begin <= key && key < seen_.end; }

  FLAGATTN_INLINE const BFloat16* row(int64_t key, int64_t d, int64_t rest, BFloat16* copy) const {
    if (sees(key) && rest >= kTileDepth) return rows_[key] + offset_ + d;
    std::memset(copy, 0, kTileDepth * sizeof(BFloat16));
    if (sees(key)) std::memcpy(copy, rows_[key] + offset_ + d, static_cast<size_t>(rest) * sizeof(BFloat16));
    return copy;
  }
  void lay_out(const RowsAhead<BFloat16>::Lines& lines, int64_t d, int64_t rest,
               BFloat16 (&pairs)[2][kTileRows * kTileDepth]) const {
    const bool whole = seen_.begin == 0 && seen_.end == kGroupKeys && rest >= kTileDepth;
    for (int64_t k = 0; k < kTileRows; ++k) {
      lines.fetch(2 * k);
      lines.fetch(2 * k + 1);
      if (whole) {
        store_interleaved(rows_[2 * k] + offset_ + d, rows_[2 * k + 1] + offset_ + d, pairs[0] + k * kTileDepth,
                          pairs[1] + k * kTileDepth);
      } else {
        alignas(64) BFloat16 copies[2][kTileDepth];
        store_interleaved(row(2 * k, d, rest, copies[0]), row(2 * k + 1, d, rest, copies[1]), pairs[0] + k * kTileDepth,
                          pairs[1] + k * kTileDepth);
      }
    }
  }

  template <int kSum>
  static FLAGATTN_INLINE void multiply(const BFloat16* values, bool further, float* sums, int64_t ld) {
    constexpr int kValues = kSum == 5 ? 2 : 3;
    if (further) {
      Tile<kSum>::load(sums, ld);
    } else {
      Tile<kSum>::zero();
    }
    Tile<kValues>::load(values, kTileDepth);
    Tile<kSum>::template add_product<4, kValues>();
    Tile<kSum>::store(sums, ld);
  }

  static bool is_finite(BFloat16 value) { return (value.bits & 0x7f80) != 0x7f80; }
  static bool make_finite(BFloat16 (&pairs)[2][kTileRows * kTileDepth]) {
    bool finite = true;
    for (auto& tile : pairs) {
      for (BFloat16& value : tile) {
        finite &= is_finite(value);
        if (!is_finite(value)) value.bits = 0;
      }
    }
    return finite;
  }
  static float widen(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
  }
  template <typename KeysOf>
  void add_what_is_not_finite(int64_t begin, int64_t end, const KeysOf& keys_of, float* sums, int64_t ld) const {
    for (int c = 0; c < columns_; ++c) {
      const KeyRange keys = keys_of(c);
      for (int64_t key = seen_.begin; key < seen_.end; ++key) {
        if (key < keys.begin || key >= keys.end) continue;
        const float weight = widen(weights_[c][key]);
        for (int64_t d = begin; d < end; ++d) {
          const BFloat16 value = rows_[key][offset_ + d];
          if (!is_finite(value)) sums[c * ld + d] += weight * widen(value);
        }
      }
    }
  }

  const BFloat16* const* rows_;
  const int64_t offset_;
  const KeyRange seen_;
  const int columns_;
  alignas(64) BFloat16 weights_[kTileRows][kTileDepth];
};

template <>
inline constexpr bool kInTiles<BFloat16> = true;

template <>
struct DecodeRegisters<BFloat16> : TileScope {
  explicit DecodeRegisters(int columns) : TileScope(kColumnTiles, columns) {}
};

template <>
struct DecodeTiles<BFloat16> {
  static constexpr auto score_group = score_group_in_tiles;

  template <typename KeysOf>
  static void add_values(const RowGroup& group, const KeyRange& seen, const float* weights, int columns,
                         const RowsAhead<BFloat16>& ahead, int64_t head_dim, bool further, bool alike,
                         const KeysOf& keys_of, float* sums, int64_t ld) {
    ValuesInTiles(group, seen, weights, columns).add(ahead, head_dim, further, alike, keys_of, sums, ld);
  }
};

}  // namespace flagattn::FLAGATTN_ISA
