// What scores and outputs are both made of: blocks of sixteen rows and up to three vectors of columns,
//
//   out[r][column] = sum over the steps of A(step)[r][..] * B(step)[..][column],  one chain of products from zero,
//
// where a step is 32 elements of the sum. A store waits for the last product of its block, and no product behind it
// starts meanwhile: a block is stored between the steps of the next one, for which the registers of sums are two sets.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "arch/simd/tiles.h"
#include "attention/cpu/micro_kernel.h"

namespace flagattn::FLAGATTN_ISA {

struct TileFactors {
  const BFloat16* a;  // of a block
  int64_t row_stride, step_stride;
  const BFloat16* b;  // [steps * 16][kPanel][2], of the first column
  int64_t steps;
};

template <int kSet>
FLAGATTN_INLINE void store_sum(int v, float* out) {
  static_assert(kNV == 3);
  if (v == 0) Tile<kSet>::store(out, kPanel);
  if (v == 1) Tile<kSet + 1>::store(out + kTileCols, kPanel);
  if (v == 2) Tile<kSet + 2>::store(out + 2 * kTileCols, kPanel);
}

// Sums into the set kSet; stores the other one in between, if `before` is not null.
template <int NV, int kSet>
FLAGATTN_INLINE void multiply_block(const TileFactors& factors, const BFloat16* a, float* before) {
  constexpr int kOther = kNV - kSet;
  const BFloat16* b = factors.b;
  Tile<kSet>::zero();
  if constexpr (NV > 1) Tile<kSet + 1>::zero();
  if constexpr (NV > 2) Tile<kSet + 2>::zero();
  for (int64_t step = 0; step < factors.steps; ++step) {
    Tile<6>::load(a, factors.row_stride);
    Tile<7>::load(b, 2 * kPanel);
    Tile<kSet>::template add_product<6, 7>();
    if constexpr (NV > 1) {
      Tile<7>::load(b + 2 * kTileCols, 2 * kPanel);
      Tile<kSet + 1>::template add_product<6, 7>();
    }
    if constexpr (NV > 2) {
      Tile<7>::load(b + 4 * kTileCols, 2 * kPanel);
      Tile<kSet + 2>::template add_product<6, 7>();
    }
    a += factors.step_stride;
    b += kTileRows * 2 * kPanel;
    if (before != nullptr && step < NV) store_sum<kOther>(static_cast<int>(step), before);
  }
  if (before == nullptr) return;
  for (auto v = static_cast<int>(factors.steps); v < NV; ++v) store_sum<kOther>(v, before);
}

// `count` blocks whose A are block_stride apart. out(block) is where one goes; done(block) follows when it is there.
template <int NV, typename Out, typename Done>
FLAGATTN_INLINE void multiply_blocks(const TileFactors& factors, int64_t block_stride, int64_t count, Out&& out,
                                     Done&& done) {
  const BFloat16* a = factors.a;
  float* before = nullptr;
  for (int64_t block = 0; block < count; ++block, a += block_stride) {
    if (block % 2 == 0) {
      multiply_block<NV, 0>(factors, a, before);
    } else {
      multiply_block<NV, kNV>(factors, a, before);
    }
    before = out(block);
    if (block > 0) done(block - 1);
  }
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    if (count % 2 == 1) {
      store_sum<0>(v, before);
    } else {
      store_sum<kNV>(v, before);
    }
  }
  done(count - 1);
}

}  // namespace flagattn::FLAGATTN_ISA
