// The two matrix products of a tile, on fragments that come straight from shared memory.
#pragma once

#include "arch/ptx/math.cuh"
#include "arch/ptx/matrix.cuh"
#include "arch/ptx/matrix_product.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"
#include "attention/cuda/sm80/traits.cuh"

namespace flagattn::sm80 {

// scores = q k^T for the warp's rows. A product steps over 16 columns of q and k.
template <typename Traits>
FLAGATTN_DEVICE void multiply_queries_keys(typename Traits::Scores& scores, ptx::SharedAddress queries,
                                           ptx::SharedAddress keys, int warp, int lane) {
  using Element = typename Traits::Element;
  constexpr int kHeadDim = Traits::kHeadDim;
  constexpr uint32_t kStepBytes = 16 * kHeadDim * 2;  // 16 rows
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < Traits::kRowTiles; ++i) {
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kBlockN / 8; ++j) {
      FLAGATTN_UNROLL_ALL
      for (int e = 0; e < 4; ++e) scores[i][j][e] = 0.0f;
    }
  }
  const int key_row = lane % 8 + lane / 16 * 8, key_chunk = lane / 8 % 2;
  queries += chunk_offset<kHeadDim>(warp * Traits::kRowsPerWarp + lane % 16, lane / 16);
  keys += planted(Fault::kWrongSwizzle) ? static_cast<uint32_t>(key_row * kHeadDim * 2 + key_chunk * 16)
                                        : chunk_offset<kHeadDim>(key_row, key_chunk);
  FLAGATTN_UNROLL_ALL
  for (int step = 0; step < kHeadDim / 16; ++step) {
    uint32_t a[Traits::kRowTiles][4];
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < Traits::kRowTiles; ++i) {
      ptx::ldmatrix_x4(a[i], advance_chunks<kHeadDim>(queries, step) + i * kStepBytes);
    }
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kBlockN / 16; ++j) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, advance_chunks<kHeadDim>(keys, step) + j * kStepBytes);
      FLAGATTN_UNROLL_ALL
      for (int i = 0; i < Traits::kRowTiles; ++i) {
        ptx::mma_m16n8k16<Element>(scores[i][2 * j], a[i], {b[0], b[1]});
        ptx::mma_m16n8k16<Element>(scores[i][2 * j + 1], a[i], {b[2], b[3]});
      }
    }
  }
}

// output += weights v. A product steps over 16 keys; the accumulator layout of the scores is the operand layout of the
// weights, so they never leave the registers.
template <typename Traits>
FLAGATTN_DEVICE void multiply_weights_values(typename Traits::Output& output, const typename Traits::Scores& weights,
                                             ptx::SharedAddress values, int lane) {
  using Element = typename Traits::Element;
  constexpr int kHeadDim = Traits::kHeadDim;
  constexpr uint32_t kStepBytes = 16 * kHeadDim * 2;  // 16 rows
  values += chunk_offset<kHeadDim>(lane % 16, lane / 16);
  FLAGATTN_UNROLL_ALL
  for (int step = 0; step < Traits::kBlockN / 16; ++step) {
    uint32_t a[Traits::kRowTiles][4];
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < Traits::kRowTiles; ++i) {
      FLAGATTN_UNROLL_ALL
      for (int r = 0; r < 4; ++r) {
        const float* pair = &weights[i][2 * step + r / 2][r % 2 * 2];
        a[i][r] = ptx::pack<Element>(pair[0], pair[1]);
      }
    }
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < kHeadDim / 16; ++j) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, advance_chunks<kHeadDim>(values, j) + step * kStepBytes);
      FLAGATTN_UNROLL_ALL
      for (int i = 0; i < Traits::kRowTiles; ++i) {
        ptx::mma_m16n8k16<Element>(output[i][2 * j], a[i], {b[0], b[1]});
        ptx::mma_m16n8k16<Element>(output[i][2 * j + 1], a[i], {b[2], b[3]});
      }
    }
  }
}

}  // namespace flagattn::sm80
