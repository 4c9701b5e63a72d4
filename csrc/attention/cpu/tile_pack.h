// bf16 operands in the order the tile registers read them; nothing is widened.
//
//   queries  [d / 2][column][d % 2]                          B of the scores
//   keys     [key / 16][d / 32][key % 16][d % 32]            A of the scores
//   values   [d / 16][key / 32][d % 16][key % 32]            A of the outputs: transposed
//
// What fills a tile up is zero.
#pragma once

#include <cstdint>
#include <cstring>

#include "arch/simd.h"
#include "arch/simd/tiles.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/heuristics.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int64_t kTileHalves = kTileRows * kTileDepth;   // of a tile of bf16
inline constexpr int64_t kTileSteps = kCpuKeyTile / kTileDepth;  // tiles that the keys of a key tile fill

constexpr int64_t depth_steps(int64_t n) { return (n + kTileDepth - 1) / kTileDepth; }
constexpr int64_t row_blocks(int64_t n) { return (n + kTileRows - 1) / kTileRows; }

// The first n of 32 elements, zeros behind them; n may be anything, and is 0 where `p` is null.
FLAGATTN_INLINE F32 load_pairs_up_to(const BFloat16* p, int64_t n) {
  if (n >= kTileDepth) return load_as_pairs(p);
  alignas(64) BFloat16 whole[kTileDepth] = {};
  if (n > 0) std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(BFloat16));
  return load_as_pairs(whole);
}

// Multiplied by -1 or 0, which rounds nothing.
FLAGATTN_INLINE F32 scaled_pairs(F32 pairs, F32 factor) {
  alignas(64) BFloat16 halves[kTileDepth];
  store_as_pairs(pairs, halves);
  (F32::load(halves) * factor).store(halves);
  (F32::load(halves + F32::kLanes) * factor).store(halves + F32::kLanes);
  return load_as_pairs(halves);
}

// rows[c] points at the `dim` elements of column c, or is null: that column becomes zero.
inline void pack_query_pairs(const BFloat16* const* rows, int64_t dim, float factor, BFloat16* dst) {
  for (int column = 0; column < kPanel; column += kTileCols) {
    for (int64_t d = 0; d < dim; d += kTileDepth) {
      F32 block[kTileCols];
      FLAGATTN_UNROLL for (int i = 0; i < kTileCols; ++i) {
        const BFloat16* row = rows[column + i];
        block[i] = row == nullptr ? F32::zero() : load_pairs_up_to(row + d, dim - d);
      }
      if (factor != 1.0f) {
        for (F32& pairs : block) pairs = scaled_pairs(pairs, F32::set1(factor));
      }
      transpose(block);
      BFloat16* to = dst + (d / 2 * kPanel + column) * 2;
      FLAGATTN_UNROLL for (int i = 0; i < kTileCols; ++i) store_as_pairs(block[i], to + i * 2 * kPanel);
    }
  }
}

// Row `key` of a key tile; null: zeros.
FLAGATTN_INLINE void pack_key_row(const BFloat16* row, int64_t key, int64_t dim, BFloat16* dst) {
  BFloat16* to = dst + key / kTileRows * depth_steps(dim) * kTileHalves + key % kTileRows * kTileDepth;
  for (int64_t d = 0; d < dim; d += kTileDepth, to += kTileHalves) {
    store_as_pairs(row == nullptr ? F32::zero() : load_pairs_up_to(row + d, dim - d), to);
  }
}

// rows[i] points at the `dim` values of key i of kTileDepth ones, or is null. Tile (d / 16, step) lies
// d / 16 * kTileSteps tiles behind `dst`.
FLAGATTN_KERNEL void pack_value_step(const BFloat16* const* rows, int64_t dim, BFloat16* dst) {
  for (int64_t d = 0; d < dim; d += kTileDepth) {
    F32 low[kTileRows], high[kTileRows];
    FLAGATTN_UNROLL for (int i = 0; i < kTileRows; ++i) {
      const BFloat16 *even = rows[2 * i], *odd = rows[2 * i + 1];
      interleave(even == nullptr ? F32::zero() : load_pairs_up_to(even + d, dim - d),
                 odd == nullptr ? F32::zero() : load_pairs_up_to(odd + d, dim - d), low[i], high[i]);
    }
    transpose(low);
    BFloat16* to = dst + d / kTileRows * kTileSteps * kTileHalves;
    FLAGATTN_UNROLL for (int i = 0; i < kTileRows; ++i) store_as_pairs(low[i], to + i * kTileDepth);
    if (d + kTileRows >= dim) continue;
    transpose(high);
    to += kTileSteps * kTileHalves;
    FLAGATTN_UNROLL for (int i = 0; i < kTileRows; ++i) store_as_pairs(high[i], to + i * kTileDepth);
  }
}

}  // namespace flagattn::FLAGATTN_ISA
