// The matrix products of the backward: one function, for operands that lie either way in shared memory.
#pragma once

#include "arch/ptx/matrix.cuh"
#include "arch/ptx/matrix_product.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"

namespace flagattn::sm80 {

// The dimension that a product sums over lies along the rows of the operand's tile, or across them.
enum class Depth { kAlongRows, kAcrossRows };

// A warp's part of a tile with kWidth columns, as an operand: what the lane's matrix loads start from. The same part of
// several tiles differs by constants, so that one register serves them all. Across rows, the 16 x 16 tiles of the other
// dimension lie kStride of them apart.
template <Depth kDepthValue, int kWidth, int kStride>
struct Operand {
  static constexpr Depth kDepth = kDepthValue;
  ptx::SharedAddress address;
  uint32_t tile_offset = 0;

  // In the tile that lies `offset` bytes behind; `slot` is what is not known at compile time of it, a multiple of 1024.
  FLAGATTN_DEVICE Operand of_tile(uint32_t offset, uint32_t slot = 0) const { return {address + slot, offset}; }

  // Of the 16 x 16 elements of depth step `step` and tile `tile` of the other dimension.
  FLAGATTN_DEVICE ptx::SharedAddress at(int step, int tile) const {
    constexpr uint32_t kSixteenRows = 16 * kWidth * 2;
    if constexpr (kDepth == Depth::kAlongRows) return moved(step) + (tile_offset + tile * kSixteenRows);
    return moved(tile * kStride) + (tile_offset + step * kSixteenRows);
  }

  // By pairs of chunks within the rows: an XOR inside a swizzled group, which few registers hold all of, and a constant
  // from group to group. The warp's first chunk is even, or odd, and none before it in its group is asked for.
  FLAGATTN_DEVICE ptx::SharedAddress moved(int pairs) const {
    constexpr int kPairs = kSwizzledChunks<kWidth> / 2;
    return (address ^ static_cast<uint32_t>(pairs % kPairs << 5)) + static_cast<uint32_t>(pairs / kPairs * kPairs * 32);
  }
};

// The left operand from row `first` of the product on; `first` is a multiple of what the warp takes. `base` is where
// shared memory begins.
template <Depth kDepth, int kWidth>
FLAGATTN_DEVICE Operand<kDepth, kWidth, 1> left_operand(ptx::SharedAddress base, int first, int lane) {
  if constexpr (kDepth == Depth::kAlongRows) return {base + chunk_offset<kWidth>(first + lane % 16, lane / 16)};
  return {base + chunk_offset<kWidth>(lane % 8 + lane / 16 * 8, first / 8 + lane / 8 % 2)};
}

// The right operand whose columns lie along rows, from column `first` of the product on.
template <int kWidth>
FLAGATTN_DEVICE Operand<Depth::kAlongRows, kWidth, 1> right_rows(ptx::SharedAddress base, int first, int lane) {
  const int row = first + lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
  if (planted(Fault::kWrongSwizzle)) return {base + static_cast<uint32_t>(row * kWidth * 2 + chunk * 16)};
  return {base + chunk_offset<kWidth>(row, chunk)};
}

// The right operand whose columns lie across rows: groups of 16 of them, from group `first` on every kStride-th.
template <int kWidth, int kStride>
FLAGATTN_DEVICE Operand<Depth::kAcrossRows, kWidth, kStride> right_columns(ptx::SharedAddress base, int first,
                                                                           int lane) {
  return {base + chunk_offset<kWidth>(lane % 16, 2 * first + lane / 16)};
}

// sums += left right, over a depth of 16 kSteps.
template <typename Element, int kSteps, int kRowTiles, int kColumnTiles, typename Left, typename Right>
FLAGATTN_DEVICE void multiply(float (&sums)[kRowTiles][kColumnTiles][4], const Left& left, const Right& right) {
  FLAGATTN_UNROLL_ALL
  for (int step = 0; step < kSteps; ++step) {
    uint32_t a[kRowTiles][4];
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kRowTiles; ++i) {
      if constexpr (Left::kDepth == Depth::kAlongRows) {
        ptx::ldmatrix_x4(a[i], left.at(step, i));
      } else {
        ptx::ldmatrix_x4_trans(a[i], left.at(step, i));
      }
    }
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < kColumnTiles / 2; ++j) {
      uint32_t b[4];
      if constexpr (Right::kDepth == Depth::kAlongRows) {
        ptx::ldmatrix_x4(b, right.at(step, j));
      } else {
        ptx::ldmatrix_x4_trans(b, right.at(step, j));
      }
      FLAGATTN_UNROLL_ALL
      for (int i = 0; i < kRowTiles; ++i) {
        ptx::mma_m16n8k16<Element>(sums[i][2 * j], a[i], {b[0], b[1]});
        ptx::mma_m16n8k16<Element>(sums[i][2 * j + 1], a[i], {b[2], b[3]});
      }
    }
  }
}

}  // namespace flagattn::sm80
