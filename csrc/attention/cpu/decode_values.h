// Sums of values of few columns: dims in the lanes, the weight of a column broadcast, every value loaded once for up to
// four columns. Per element the same chain over the keys as in outputs.h.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/decode_scores.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/pack.h"

namespace flagattn::FLAGATTN_ISA {

// sums[g][d ...] (+)= sum over the keys of weights[key][g] * rows[key][d ...]; `rest` dims where a vector is not whole.
template <typename T, int G, int NV, bool kWhole>
FLAGATTN_KERNEL void add_values(const T* const* rows, const T* const* ahead, int64_t num_keys, int64_t d, int64_t rest,
                                const float* weights, bool further, float* sums, int64_t ld) {
  F32 c[G][NV];
  if (further) {
    load_block(sums, ld, c);
  } else {
    clear(c);
  }
  for (int64_t key = 0; key < num_keys; ++key) {
    const T* row = rows[key] + d;
    FLAGATTN_UNROLL for (int v = 0; v < NV; v += 64 / static_cast<int>(sizeof(T)) / F32::kLanes) {
      prefetch(ahead[key] + d + v * F32::kLanes);
    }
    F32 value[NV];
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      value[v] = kWhole ? F32::load(row + v * F32::kLanes) : load_up_to(row + v * F32::kLanes, rest - v * F32::kLanes);
    }
    FLAGATTN_UNROLL for (int g = 0; g < G; ++g) {
      const F32 weight = F32::set1(weights[key * 4 + g]);
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[g][v] = fma(value[v], weight, c[g][v]);
    }
  }
  store_block(c, sums, ld);
}

// All dims of up to four columns; `sums` has rows of whole vectors, ld apart.
template <typename T, int G>
inline void add_value_rows(const T* const* rows, const T* const* ahead, int64_t num_keys, int64_t head_dim,
                           const float* weights, bool further, float* sums, int64_t ld) {
  constexpr int NV = G <= 2 ? 4 : 2;
  constexpr int64_t kDims = NV * F32::kLanes;
  int64_t d = 0;
  for (; d + kDims <= head_dim; d += kDims) {
    add_values<T, G, NV, true>(rows, ahead, num_keys, d, kDims, weights, further, sums + d, ld);
  }
  for (; d < head_dim; d += F32::kLanes) {
    add_values<T, G, 1, false>(rows, ahead, num_keys, d, head_dim - d, weights, further, sums + d, ld);
  }
}

// Keys [begin, end) for columns [first, stop): weights[block][key][4] of the tile.
template <typename T>
inline void add_few_columns(const T* const* rows, const T* const* ahead, int64_t begin, int64_t end, int64_t head_dim,
                            const float* weights, int first, int stop, float* sums, int64_t ld) {
  constexpr int64_t kKeysAtOnce = 16;  // their rows stay in L1 for all columns
  for (int64_t key = begin; key < end; key += kKeysAtOnce) {
    const int64_t n = end - key < kKeysAtOnce ? end - key : kKeysAtOnce;
    const bool further = key > begin;
    for (int column = first; column < stop;) {
      const int in_block = 4 - column % 4, count = stop - column < in_block ? stop - column : in_block;
      const float* from = weights + column / 4 * kBlockScores + key * 4 + column % 4;
      const auto add = [&]<int G>() {
        add_value_rows<T, G>(rows + key, ahead + key, n, head_dim, from, further, sums + column * ld, ld);
      };
      switch (count) {
        case 4:
          add.template operator()<4>();
          break;
        case 3:
          add.template operator()<3>();
          break;
        case 2:
          add.template operator()<2>();
          break;
        default:
          add.template operator()<1>();
      }
      column += count;
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
