// Products of cells (backward_cells.h) in tile registers 0 to 7, fp32 sums.
#pragma once

#include <bit>
#include <cstdint>

#include "arch/simd/tiles.h"
#include "attention/cpu/backward_cell_pack.h"
#include "attention/cpu/backward_cells.h"

namespace flagattn::FLAGATTN_ISA {

// 32 rows of 16 kTiles sums each, in registers 0 to 3.
template <int kTiles>
struct CellSums {
  static FLAGATTN_INLINE void zero() {
    Tile<0>::zero();
    Tile<2>::zero();
    if constexpr (kTiles == 2) {
      Tile<1>::zero();
      Tile<3>::zero();
    }
  }
  static FLAGATTN_INLINE void load(const float* sums, int64_t ld) {
    Tile<0>::load(sums, ld);
    Tile<2>::load(sums + kTileRows * ld, ld);
    if constexpr (kTiles == 2) {
      Tile<1>::load(sums + kTileCols, ld);
      Tile<3>::load(sums + kTileRows * ld + kTileCols, ld);
    }
  }
  static FLAGATTN_INLINE void store(float* sums, int64_t ld) {
    Tile<0>::store(sums, ld);
    Tile<2>::store(sums + kTileRows * ld, ld);
    if constexpr (kTiles == 2) {
      Tile<1>::store(sums + kTileCols, ld);
      Tile<3>::store(sums + kTileRows * ld + kTileCols, ld);
    }
  }
  // += rows pairs
  static FLAGATTN_INLINE void add_product(const BFloat16* rows, const BFloat16* pairs) {
    Tile<4>::load(rows, kTileDepth);
    Tile<6>::load(pairs, kTileDepth);
    Tile<0>::template add_product<4, 6>();
    Tile<5>::load(rows + kTileSize, kTileDepth);
    Tile<2>::template add_product<5, 6>();
    if constexpr (kTiles == 2) {
      Tile<7>::load(pairs + kTileSize, kTileDepth);
      Tile<1>::template add_product<4, 7>();
      Tile<3>::template add_product<5, 7>();
    }
  }
};

// dst[key][kPanel] = the product of `steps` cells of a row of keys and a panel's, step by step from zero on.
inline void multiply_cells(const BFloat16* rows, const BFloat16* pairs, int64_t steps, float* dst) {
  CellSums<2>::zero();
  for (int64_t step = 0; step < steps; ++step, rows += kCellSize, pairs += kCellSize) {
    CellSums<2>::add_product(rows, pairs);
  }
  CellSums<2>::store(dst, kPanel);
}

// dQ^T[d][column] += K^T dS^T of one panel, over the cells of keys whose bit is set. `transposed` holds kKeyCells cells
// for every kCell dims, dscores one for every `stride` elements.
inline void add_cells_to_dqueries(const BFloat16* transposed, const BFloat16* dscores, int64_t stride, unsigned keys,
                                  int64_t dim, float* dqueries) {
  for (int64_t d = 0; d < dim; d += kCell, transposed += kKeyCells * kCellSize, dqueries += kCell * kPanel) {
    CellSums<2>::load(dqueries, kPanel);
    for (unsigned left = keys; left != 0; left &= left - 1) {
      const int key = std::countr_zero(left);
      CellSums<2>::add_product(transposed + key * kCellSize, dscores + key * stride);
    }
    CellSums<2>::store(dqueries, kPanel);
  }
}

// sums[key][d] += the product of a row of cells [panel] and rows of the panels whose bit is set, for one cell of keys
// and 16 kTiles dims. `pairs` has one cell for every `stride` elements.
template <int kTiles>
inline void add_cells_to_keys(const BFloat16* scores, const BFloat16* pairs, int64_t stride, unsigned panels,
                              float* sums, int64_t ld) {
  CellSums<kTiles>::load(sums, ld);
  for (unsigned left = panels; left != 0; left &= left - 1) {
    const int panel = std::countr_zero(left);
    CellSums<kTiles>::add_product(scores + panel * kCellSize, pairs + panel * stride);
  }
  CellSums<kTiles>::store(sums, ld);
}

inline float widened(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// sums(i) += scores(i) * x for i < kCell, without the pairs whose score is zero unless all of them are seen: an element
// x that is not finite, which the products above took as zero.
template <typename ScoreAt, typename SumAt>
inline void add_not_finite(BFloat16 x, bool all_seen, ScoreAt&& scores, SumAt&& sums) {
  for (int i = 0; i < kCell; ++i) {
    const float score = widened(scores(i));
    if (all_seen || score != 0.0f) sums(i) += score * widened(x);
  }
}

}  // namespace flagattn::FLAGATTN_ISA
