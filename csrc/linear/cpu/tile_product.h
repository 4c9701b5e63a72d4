// Products in the tile registers of the amx level: operands are rounded to bf16 while they are packed (exact where they
// are bf16 already), and every element is one chain of tile products over the depth, from its lowest index up. So
// neither the place of a row nor the number of rows beside it enters into its bits.
#pragma once

#include <algorithm>

#include "arch/simd/tiles.h"
#include "linear/cpu/linear_isa.h"

namespace flagattn::FLAGATTN_ISA {

// Tiles of an operand: [index / 16][depth / 32][16][32] bf16.
constexpr int64_t kTileElements = kTileRows * kTileDepth;
constexpr int64_t kPackedPanel = kTilePackedDepth * kTileRows;  // elements of 16 indices
constexpr int64_t kBlockIndices = 2 * kTileRows;                // two by two tiles of sums stay in registers

// Operands -----------------------------------------------------------------------------------------------------------

// Sixteen pairs of neighbours of p, zeros from `count` elements on.
FLAGATTN_INLINE F32 load_neighbours(const float* p, int64_t count) {
  return pairs_in_order(F32::load_n(p, count), F32::load_n(p + kTileCols, count - kTileCols));
}
FLAGATTN_INLINE F32 load_neighbours(const BFloat16* p, int64_t count) {
  if (count >= kTileDepth) return load_as_pairs(p);
  return pairs_in_order(F32::load_n(p, count), F32::load_n(p + kTileCols, count - kTileCols));
}

// The tile of 16 indices from `index` on and 32 of the depth from `k` on: rows are indices (kByPairs false, an A tile)
// or pairs of the depth (true, a B tile). There are `indices` and `depth` of them, zeros follow.
template <bool kByPairs, typename T>
FLAGATTN_INLINE void pack_tile(const T* matrix, int64_t index_stride, int64_t k_stride, int64_t indices, int64_t depth,
                               BFloat16* tile) {
  T gathered[kTileElements];
  if (k_stride != 1 && index_stride != 1) {
    for (int64_t i = 0; i < std::min<int64_t>(indices, kTileRows); ++i) {
      for (int64_t k = 0; k < std::min<int64_t>(depth, kTileDepth); ++k) {
        gathered[i * kTileDepth + k] = matrix[i * index_stride + k * k_stride];
      }
    }
    matrix = gathered;
    index_stride = kTileDepth;
    k_stride = 1;
  }
  F32 lines[kTileRows];
  if (k_stride == 1) {
    FLAGATTN_UNROLL for (int i = 0; i < kTileRows; ++i) {
      lines[i] = i < indices ? load_neighbours(matrix + i * index_stride, depth) : F32::zero();
    }
    if constexpr (kByPairs) transpose(lines);
  } else {
    FLAGATTN_UNROLL for (int pair = 0; pair < kTileRows; ++pair) {
      const auto row = [&](int k) { return k < depth ? F32::load_n(matrix + k * k_stride, indices) : F32::zero(); };
      lines[pair] = pairs_of(row(2 * pair), row(2 * pair + 1));
    }
    if constexpr (!kByPairs) transpose(lines);
  }
  FLAGATTN_UNROLL for (int i = 0; i < kTileRows; ++i) lines[i].store(reinterpret_cast<float*>(tile + i * kTileDepth));
}

// Indices [0, count) of the depth [k, k + depth).
template <bool kByPairs, typename T>
void pack_panels(const MatrixView& view, int64_t first, int64_t count, int64_t k, int64_t depth, BFloat16* packed) {
  for (int64_t i = 0; i < count; i += kTileRows, packed += kPackedPanel) {
    for (int64_t d = 0; d < depth; d += kTileDepth) {
      const T* from = static_cast<const T*>(view.data) + (first + i) * view.row_stride + (k + d) * view.col_stride;
      pack_tile<kByPairs>(from, view.row_stride, view.col_stride, count - i, depth - d,
                          packed + d / kTileDepth * kTileElements);
    }
  }
}

// Sums ---------------------------------------------------------------------------------------------------------------

// kRows x kCols tiles of sums, the left and upper one at `sums`.
template <int kRows, int kCols>
void add_tiles(const BFloat16* a, const BFloat16* b, int64_t tiles, bool first, float* sums, int64_t stride) {
  const auto for_each_sum = [&](auto&& body) {
    body.template operator()<0>(sums);
    if constexpr (kCols > 1) body.template operator()<1>(sums + kTileCols);
    if constexpr (kRows > 1) body.template operator()<2>(sums + kTileRows * stride);
    if constexpr (kRows > 1 && kCols > 1) body.template operator()<3>(sums + kTileRows * stride + kTileCols);
  };
  for_each_sum([&]<int kSum>(const float* from) {
    if (first) {
      Tile<kSum>::zero();
    } else {
      Tile<kSum>::load(from, stride);
    }
  });
  for (int64_t tile = 0; tile < tiles; ++tile, a += kTileElements, b += kTileElements) {
    Tile<4>::load(a, kTileDepth);
    Tile<6>::load(b, kTileDepth);
    Tile<0>::add_product<4, 6>();
    if constexpr (kCols > 1) {
      Tile<7>::load(b + kPackedPanel, kTileDepth);
      Tile<1>::add_product<4, 7>();
    }
    if constexpr (kRows > 1) {
      Tile<5>::load(a + kPackedPanel, kTileDepth);
      Tile<2>::add_product<5, 6>();
    }
    if constexpr (kRows > 1 && kCols > 1) Tile<3>::add_product<5, 7>();
  }
  for_each_sum([&]<int kSum>(float* to) { Tile<kSum>::store(to, stride); });
}

// Packed rows times packed columns. Blocks that the result ends in go through a place of their own.
inline void add_packed(const BFloat16* a, int64_t rows, const BFloat16* b, int64_t cols, int64_t depth, bool first,
                       float* sums, int64_t stride) {
  const int64_t tiles = (depth + kTileDepth - 1) / kTileDepth;
  alignas(64) float edge[kBlockIndices * kBlockIndices];
  for (int64_t j = 0; j < cols; j += kBlockIndices) {
    const BFloat16* columns = b + j / kTileRows * kPackedPanel;
    const int64_t width = std::min(kBlockIndices, cols - j);
    for (int64_t i = 0; i < rows; i += kBlockIndices) {
      const int64_t height = std::min(kBlockIndices, rows - i);
      const bool whole = width % kTileCols == 0 && height % kTileRows == 0;
      float* out = sums + i * stride + j;
      float* to = whole ? out : edge;
      const int64_t ld = whole ? stride : kBlockIndices;
      for (int64_t r = 0; r < height && !whole && !first; ++r) std::copy_n(out + r * stride, width, edge + r * ld);
      const BFloat16* lines = a + i / kTileRows * kPackedPanel;
      if (height > kTileRows) {
        width > kTileCols ? add_tiles<2, 2>(lines, columns, tiles, first, to, ld)
                          : add_tiles<2, 1>(lines, columns, tiles, first, to, ld);
      } else {
        width > kTileCols ? add_tiles<1, 2>(lines, columns, tiles, first, to, ld)
                          : add_tiles<1, 1>(lines, columns, tiles, first, to, ld);
      }
      for (int64_t r = 0; r < height && !whole; ++r) std::copy_n(edge + r * ld, width, out + r * stride);
    }
  }
}

// sums = x weight^T of rows from `row` and of columns from `col` on, or sums += that. scratch: kTileScratch floats.
template <typename T>
void multiply_in_tiles(const MatrixView& x, int64_t row, int64_t rows, const MatrixView& weight, int64_t col,
                       int64_t cols, int64_t depth, bool accumulate, float* sums, int64_t stride, float* scratch) {
  const TileScope tiles;
  BFloat16* lines = reinterpret_cast<BFloat16*>(scratch);
  BFloat16* columns = lines + kTileProductRows / kTileRows * kPackedPanel;
  for (int64_t k = 0; k < depth; k += kTilePackedDepth) {
    const int64_t length = std::min(kTilePackedDepth, depth - k);
    pack_panels<true, T>(weight, col, cols, k, length, columns);
    for (int64_t i = 0; i < rows; i += kTileProductRows) {
      const int64_t height = std::min(kTileProductRows, rows - i);
      pack_panels<false, T>(x, row + i, height, k, length, lines);
      add_packed(lines, height, columns, cols, length, k == 0 && !accumulate, sums + i * stride, stride);
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
