// The way out of registers: gradients in whole rows, 16 bytes per lane.
#pragma once

#include "arch/ptx/copy.cuh"
#include "arch/ptx/math.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"

namespace flagattn::sm80 {

// Transposes a 4 x 4 matrix of words that lies across the lanes of a quad: lane t gives the words of its columns of
// four column tiles, and receives all four lanes' words of tile t.
FLAGATTN_DEVICE void transpose_quad(uint32_t (&words)[4], int lane) {
  FLAGATTN_UNROLL_ALL
  for (int distance = 1; distance <= 2; ++distance) {
    const bool upper = (lane & distance) != 0;
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < 2; ++n) {
      uint32_t& low = words[distance == 1 ? 2 * n : n];
      uint32_t& high = words[distance == 1 ? 2 * n + 1 : n + 2];
      const uint32_t received = ptx::shuffle_xor(upper ? low : high, distance);
      (upper ? low : high) = received;
    }
  }
}

// Writes a warp's accumulators times `scale` to the rows from `first_row` and the columns from `first_column` on.
template <typename Element, int kRowTiles, int kColumnTiles>
FLAGATTN_DEVICE void store_gradients(const float (&sums)[kRowTiles][kColumnTiles][4], float scale,
                                     const HeadRows<Element>& to, int first_row, int first_column, int lane) {
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kRowTiles; ++i) {
    FLAGATTN_UNROLL_ALL
    for (int h = 0; h < 2; ++h) {
      const int row = first_row + 16 * i + 8 * h + lane / 4;
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < kColumnTiles; j += 4) {
        uint32_t words[4];
        FLAGATTN_UNROLL_ALL
        for (int n = 0; n < 4; ++n) {
          const float* pair = &sums[i][j + n][2 * h];
          words[n] = ptx::pack<Element>(pair[0] * scale, pair[1] * scale);
        }
        transpose_quad(words, lane);
        const int column = first_column + 8 * (j + lane % 4);
        if ((row < to.rows || planted(Fault::kStrayWrite)) && column < to.columns) {
          ptx::store_global_16(to.data + row * to.row_stride + column, {{words[0], words[1], words[2], words[3]}});
        }
      }
    }
  }
}

}  // namespace flagattn::sm80
