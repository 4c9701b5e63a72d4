// The products of gradients where an operand is not finite and not all pairs of the tile are seen. Weights and dS of
// pairs that are not seen are zero, but 0 * NaN is NaN: here what is zero is left out. What is left are the same sums
// in the same order, to the bit; slow, and only met where something is wrong already.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/backward_products.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/pack.h"

namespace flagattn::FLAGATTN_ISA {

inline bool all_finite(const float* rows, int64_t stride, int64_t n, int64_t dim) {
  F32 differences = F32::zero();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < dim; d += F32::kLanes) {
      const F32 x = load_up_to(rows + i * stride + d, dim - d);
      differences = differences + (x - x);
    }
  }
  return differences.sum() == 0.0f;
}

// add_to_dqueries without the pairs whose dS is zero.
template <int NV>
inline void add_seen_to_dqueries(const float* keys, int64_t key_stride, const float* dscores, int column, int32_t begin,
                                 int32_t end, int64_t head_dim, float* dqueries) {
  for (int v = 0; v < NV; ++v) {
    const int c = column + v * F32::kLanes;
    for (int64_t d = 0; d < head_dim; ++d) {
      F32 sum = F32::zero();
      for (int32_t key = begin; key < end; ++key) {
        const F32 dscore = F32::load(dscores + key * kPanel + c);
        sum = select(dscore == F32::zero(), sum, fma(F32::set1(keys[key * key_stride + d]), dscore, sum));
      }
      float* at = dqueries + d * kPanel + c;
      (F32::load(at) + sum).store(at);
    }
  }
}

// add_to_keys without the pairs whose score is zero.
template <int NV>
inline void add_seen_to_keys(const BackwardPanel* panels, int64_t num_panels, StripRanges ranges, int strip,
                             const float* scores, const float* rows, float* sums, int64_t ld) {
  for (int r = 0; r < kMR; ++r) {
    F32 c[1][NV];
    clear(c);
    for (int64_t i = 0; i < num_panels; ++i) {
      const ColumnRange range = (panels[i].*ranges)[strip];
      const float* from = scores + (i * kBackwardKeyTile + strip * kMR + r) * kPanel;
      for (int column = range.begin; column < range.end; ++column) {
        if (from[column] == 0.0f) continue;
        multiply_rows(from + column, kPanel, rows + (panels[i].first_column + column) * NV * F32::kLanes,
                      NV * F32::kLanes, 1, c);
      }
    }
    add_block(c, sums + r * ld, ld);
  }
}

}  // namespace flagattn::FLAGATTN_ISA
