// The three products that add P and dS up to gradients.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/micro_kernel.h"

namespace flagattn::FLAGATTN_ISA {

// p += c. Sums of a tile are formed apart and added last: nothing waits for p to arrive from memory.
template <int MR, int NV>
FLAGATTN_INLINE void add_block(const F32 (&c)[MR][NV], float* p, int64_t ld) {
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      float* at = p + r * ld + v * F32::kLanes;
      (F32::load(at) + c[r][v]).store(at);
    }
  }
}

// dQ^T[d][column] += sum over the keys [begin, end) of the tile of K[key][d] * dS^T[key][column], for NV vectors from
// `column` on.
template <int NV>
inline void add_to_dqueries(const float* keys, int64_t key_stride, const float* dscores, int column, int32_t begin,
                            int32_t end, int64_t head_dim, float* dqueries) {
  for (int64_t d = 0; d < head_dim; d += kMR) {
    F32 c[kMR][NV];
    clear(c);
    multiply_strip(keys + begin * key_stride + d, key_stride, dscores + begin * kPanel + column, kPanel, end - begin,
                   c);
    add_block(c, dqueries + d * kPanel + column, kPanel);
  }
}

// sums[key][dims] += sum over the columns of all panels of scores[panel][key][column] * rows[column][dims], for one
// strip of keys and NV vectors of dims. `ranges` is a panel's array, by strips of keys.
template <int NV>
inline void add_to_keys(const BackwardPanel* panels, int64_t num_panels, StripRanges ranges, int strip,
                        const float* scores, const float* rows, float* sums, int64_t ld) {
  F32 c[kMR][NV];
  clear(c);
  for (int64_t i = 0; i < num_panels; ++i) {
    const ColumnRange range = (panels[i].*ranges)[strip];
    if (range.begin == range.end) continue;
    multiply_rows(scores + (i * kBackwardKeyTile + strip * kMR) * kPanel + range.begin, kPanel,
                  rows + (panels[i].first_column + range.begin) * NV * F32::kLanes, NV * F32::kLanes,
                  range.end - range.begin, c);
  }
  add_block(c, sums, ld);
}

}  // namespace flagattn::FLAGATTN_ISA
