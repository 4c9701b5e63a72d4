// The way out of registers: gradients in whole rows, 16 bytes per lane.
#pragma once

#include "arch/ptx/copy.cuh"
#include "arch/ptx/math.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"

namespace flagattn::sm80 {

// Writes a warp's accumulators times `scale` to the rows from `first_row` on, and to every kStride-th group of 16
// columns from group `first_group` on. Neighbouring lanes change words, so that each holds four columns of one of the
// two tiles of a group: the four lanes of a row write whole sectors.
template <int kStride, typename Element, int kRowTiles, int kColumnTiles>
FLAGATTN_DEVICE void store_gradients(const float (&sums)[kRowTiles][kColumnTiles][4], float scale,
                                     const HeadRows<Element>& to, int first_row, int first_group, int lane) {
  const bool is_odd = lane % 2 != 0;
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kRowTiles; ++i) {
    FLAGATTN_UNROLL_ALL
    for (int h = 0; h < 2; ++h) {
      const int row = first_row + 16 * i + 8 * h + lane / 4;
      FLAGATTN_UNROLL_ALL
      for (int n = 0; n < kColumnTiles / 2; ++n) {
        const float *left = &sums[i][2 * n][2 * h], *right = &sums[i][2 * n + 1][2 * h];
        const uint32_t own_left = ptx::pack<Element>(left[0] * scale, left[1] * scale);
        const uint32_t own_right = ptx::pack<Element>(right[0] * scale, right[1] * scale);
        const uint32_t received = ptx::shuffle_xor(is_odd ? own_left : own_right, 1);
        const uint64_t low = is_odd ? received : own_left, high = is_odd ? own_right : received;
        const int column = 16 * (first_group + n * kStride) + 8 * (lane % 2) + 4 * (lane % 4 / 2);
        if ((row < to.rows || planted(Fault::kStrayWrite)) && column < to.columns) {
          ptx::store_global(reinterpret_cast<uint64_t*>(to.data + row * to.row_stride + column), low | high << 32);
        }
      }
    }
  }
}

}  // namespace flagattn::sm80
