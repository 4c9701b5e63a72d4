// Operands of the attention backward become cells (backward_cells.h).
#pragma once

#include <cstdint>

#include "arch/simd/tiles.h"
#include "attention/cpu/backward_cells.h"
#include "attention/cpu/micro_kernel.h"

namespace flagattn::FLAGATTN_ISA {

inline bool is_finite(BFloat16 x) { return (x.bits & 0x7f80) != 0x7f80; }

// Products whose operand is not finite multiply zeros in its place: what is hidden adds nothing, and what is not is
// added apart (backward_cell_products.h).
inline void clear_what_is_not_finite(BFloat16* cells, int64_t count) {
  for (int64_t i = 0; i < count * kCellSize; ++i) {
    if (!is_finite(cells[i])) cells[i].bits = 0;
  }
}

// 0 where all are finite, else NaN; sums of what is finite may overflow, and then the careful way is taken for nothing.
class FiniteCheck {
 public:
  FLAGATTN_INLINE void add(const BFloat16* row) {
    F32 even, odd;
    load_pairs(row, even, odd);
    const F32 sum = even + odd;
    differences_ = differences_ + (sum - sum);
  }
  bool passed() const { return differences_.sum() == 0.0f; }

 private:
  F32 differences_ = F32::zero();
};

// 16 rows of up to 32 elements become one tile of the transposed: [pair of dims][row].
FLAGATTN_INLINE void store_transposed(const BFloat16* const* rows, BFloat16* tile) {
  F32 block[16];
  FLAGATTN_UNROLL for (int i = 0; i < 16; ++i) block[i] = load_as_pairs(rows[i]);
  transpose(block);
  FLAGATTN_UNROLL for (int i = 0; i < 16; ++i) store_as_pairs(block[i], tile + i * kTileDepth);
}

// The kCell rows of a panel, of `dim` elements, become pairs cells of the transposed and of the rows themselves, one
// for every kCell dims. Returns whether all are finite.
inline bool pack_panel(const BFloat16* const* rows, int64_t dim, BFloat16* transposed, BFloat16* pairs) {
  FiniteCheck finite;
  for (int64_t d = 0; d < dim; d += kCell, transposed += kCellSize, pairs += kCellSize) {
    alignas(64) BFloat16 rest[kCellSize];
    const BFloat16* at[kCell];
    for (int i = 0; i < kCell; ++i) {
      at[i] = rows[i] + d;
      if (dim - d < kCell) {
        copy_row(at[i], dim - d, rest + i * kCell);
        at[i] = rest + i * kCell;
      }
      finite.add(at[i]);
    }
    for (int tile = 0; tile < 2; ++tile) store_transposed(at + tile * kTileCols, transposed + tile * kTileSize);
    for (int i = 0; i < kCell; i += 2) {
      BFloat16* to = pairs + i / 2 * kTileDepth;
      store_interleaved(at[i], at[i + 1], to, to + kTileSize);
    }
  }
  return finite.passed();
}

// A key tile of `n` rows becomes rows cells [keys][dims]; rows behind it are zero.
inline bool pack_key_rows(const BFloat16* src, int64_t stride, int64_t n, int64_t dim, BFloat16* cells) {
  FiniteCheck finite;
  const int64_t steps = cells_of(dim);
  for (int64_t key = 0; key < kBackwardKeyTile; ++key) {
    BFloat16* to = cells + key / kCell * steps * kCellSize + key % kCell * kCell;
    for (int64_t step = 0; step < steps; ++step, to += kCellSize) {
      copy_row(src + key * stride + step * kCell, key < n ? dim - step * kCell : 0, to);
      finite.add(to);
    }
  }
  return finite.passed();
}

// Those become rows cells [dims][keys].
inline void transpose_key_rows(const BFloat16* cells, int64_t dim, BFloat16* transposed) {
  const int64_t steps = cells_of(dim);
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t keys = 0; keys < kKeyCells; ++keys, transposed += kCellSize) {
      const BFloat16* rows = cells + (keys * steps + step) * kCellSize;
      alignas(64) BFloat16 pairs[kCellSize];
      const BFloat16* at[kCell];
      for (int i = 0; i < kCell; i += 2) {
        BFloat16* to = pairs + i / 2 * kTileDepth;
        store_interleaved(rows + i * kCell, rows + (i + 1) * kCell, to, to + kTileSize);
        at[i / 2] = to;
        at[kTileRows + i / 2] = to + kTileSize;
      }
      for (int tile = 0; tile < 2; ++tile) store_transposed(at + tile * kTileRows, transposed + tile * kTileSize);
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
