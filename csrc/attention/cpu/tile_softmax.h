// Scores become weights as in softmax.h, and then, rounded to bf16, the operand of the outputs: [key / 2][column][key %
// 2].
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "arch/simd/tiles.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/softmax.h"

namespace flagattn::FLAGATTN_ISA {

constexpr int64_t pairs_at(int32_t key, int column) { return (key / 2 * kPanel + column) * 2; }

// What is dropped counts in the sums: the weights that are rounded are multiplied by `dropout`, if it is not null.
template <int NV, bool kDrops>
FLAGATTN_KERNEL void weigh_in_pairs(const PanelStatistics& statistics, const Run& run, float factor,
                                    const float* scores, const float* dropout, F32 (&partial)[2][kNV],
                                    BFloat16* weights, RowList& ahead) {
  constexpr int kKeys = 4;
  static_assert(kMR % kKeys == 0);
  const F32 minus_factor = F32::set1(-factor), farthest = farthest_below(factor);
  for (int v = run.first_vector; v < run.first_vector + NV; ++v) {
    const int column = first_column(v);
    const F32 maximum = F32::load(statistics.maximum + column);
    F32 even = partial[0][v], odd = partial[1][v];
    for (int32_t key = run.begin; key < run.end; key += kKeys) {
      if (key % kTileDepth == 0) ahead.step();
      const int64_t at = key * kPanel + column;
      F32 some[kKeys];
      FLAGATTN_UNROLL for (int i = 0; i < kKeys; ++i) some[i] = maximum - F32::load(scores + at + i * kPanel);
      weights_of_all(some, minus_factor, farthest);
      FLAGATTN_UNROLL for (int i = 0; i < kKeys; i += 2) {
        even = even + some[i];
        odd = odd + some[i + 1];
      }
      if constexpr (kDrops) {
        FLAGATTN_UNROLL for (int i = 0; i < kKeys; ++i) some[i] = some[i] * F32::load(dropout + at + i * kPanel);
      }
      FLAGATTN_UNROLL for (int i = 0; i < kKeys; i += 2) {
        store_pairs(some[i], some[i + 1], weights + pairs_at(key + i, column));
      }
    }
    partial[0][v] = even;
    partial[1][v] = odd;
  }
}

}  // namespace flagattn::FLAGATTN_ISA
