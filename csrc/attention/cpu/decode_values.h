// Sums of values of few columns: dims in the lanes, the weight of a column broadcast, every value loaded once for up to
// four columns, or eight where their sums fit the registers. Per element the same chain over the keys as in outputs.h.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/decode_products.h"
#include "attention/cpu/decode_rows.h"
#include "attention/cpu/decode_scores.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/pack.h"

namespace flagattn::FLAGATTN_ISA {

// Sums of bf16 lie in pairs of vectors, even dims and then odd ones, as far as 2 kLanes dims are whole: so two of them
// are widened by a shift and a mask.
template <typename T>
inline constexpr bool kInPairs = false;
template <>
inline constexpr bool kInPairs<BFloat16> = true;
template <typename T>
constexpr int64_t dims_in_pairs(int64_t head_dim) {
  return kInPairs<T> && !kInTiles<T> ? head_dim / (2 * F32::kLanes) * (2 * F32::kLanes) : 0;
}
template <typename T>
FLAGATTN_INLINE void load_two(const T* p, F32& first, F32& second) {
  first = F32::load(p);
  second = F32::load(p + F32::kLanes);
}
FLAGATTN_INLINE void load_two(const BFloat16* p, F32& even, F32& odd) { load_pairs(p, even, odd); }

// A row of sums in the order of its dims.
inline void unpair(int64_t num_dims, float* sums) {
  alignas(64) float pairs[2 * F32::kLanes];
  for (int64_t d = 0; d < num_dims; d += 2 * F32::kLanes) {
    for (int i = 0; i < F32::kLanes; ++i) {
      pairs[2 * i] = sums[d + i];
      pairs[2 * i + 1] = sums[d + F32::kLanes + i];
    }
    for (int i = 0; i < 2 * F32::kLanes; ++i) sums[d + i] = pairs[i];
  }
}

// Vectors of sums that stay in registers beside values and a weight.
inline constexpr int kMostSums = F32::kRegisters / 2;
inline constexpr bool kTakesTwoBlocks = kMostSums >= 2 * 8;

// Lines that are fetched while the first rows are added: with each row one of each table.
template <typename T, int N>
struct FetchedLines {
  typename RowsAhead<T>::Lines tables[N];
  int64_t num_rows = 0;

  FLAGATTN_INLINE void fetch(int64_t row) const {
    if (row >= num_rows) return;
    FLAGATTN_UNROLL for (int i = 0; i < N; ++i) tables[i].fetch(row);
  }
};
// Lines of NV vectors; 1 where they are a part of a line.
template <typename T, int NV>
inline constexpr int kLinesOf = (NV * F32::kLanes * static_cast<int>(sizeof(T)) + 63) / 64;

// sums[g][d ...] (+)= sum over the keys of weights[g / 4][key][g % 4] * rows[key][d ...]; `rest` dims where a vector is
// not whole. Element d is already counted in the offset.
template <typename T, int G, int NV, bool kWhole>
FLAGATTN_KERNEL void add_values(const T* const* rows, int64_t offset, int64_t num_keys, int64_t rest,
                                const float* weights, const FetchedLines<T, kLinesOf<T, NV>>& fetched, bool further,
                                float* sums, int64_t ld) {
  F32 c[G][NV];
  if (further) {
    load_block(sums, ld, c);
  } else {
    clear(c);
  }
  // Alone, a step has hardly more arithmetic than the loop around it.
  _Pragma("GCC unroll 2") for (int64_t key = 0; key < num_keys; ++key) {
    const T* row = rows[key] + offset;
    fetched.fetch(key);
    F32 value[NV];
    if constexpr (kWhole) {
      FLAGATTN_UNROLL for (int v = 0; v < NV; v += 2) load_two(row + v * F32::kLanes, value[v], value[v + 1]);
    } else {
      static_assert(NV == 1);
      value[0] = load_up_to(row, rest);
    }
    FLAGATTN_UNROLL for (int g = 0; g < G; ++g) {
      const F32 weight = F32::set1(weights[g / 4 * kBlockScores + key * 4 + g % 4]);
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[g][v] = fma(value[v], weight, c[g][v]);
    }
  }
  store_block(c, sums, ld);
}

// All dims of G columns; `sums` has rows of whole vectors, ld apart. Meanwhile lines of the rows `fetched` are fetched,
// one row's with each key: many at once would wait for one another.
template <typename T, int G>
inline void add_value_rows(const RowGroup& group, const RowsAhead<T>& ahead, const KeyRange& fetched, int64_t num_keys,
                           int64_t head_dim, const float* weights, bool further, float* sums, int64_t ld) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* const* rows = group.typed<T>();
  int64_t d = 0;
  const auto add_whole = [&]<int NV>() {
    for (; d + NV * F32::kLanes <= head_dim; d += NV * F32::kLanes) {
      FetchedLines<T, kLinesOf<T, NV>> lines;
      for (int i = 0; i < kLinesOf<T, NV>; ++i) {
        lines.tables[i] = ahead.lines(d + i * kLine);
        lines.tables[i].rows += fetched.begin;
      }
      if (d % kLine == 0) lines.num_rows = fetched.end - fetched.begin;
      add_values<T, G, NV, true>(rows, group.offset + d, num_keys, NV * F32::kLanes, weights, lines, further, sums + d,
                                 ld);
    }
  };
  if constexpr (G * 4 <= kMostSums) add_whole.template operator()<4>();
  add_whole.template operator()<2>();
  for (; d < head_dim; d += F32::kLanes) {
    add_values<T, G, 1, false>(rows, group.offset + d, num_keys, head_dim - d, weights, {}, further, sums + d, ld);
  }
}

// num_keys keys of a group for columns [first, stop): weights[block][key][4], of the first key, kBlockScores from block
// to block.
template <typename T>
inline void add_few_columns(const RowGroup& group, const RowsAhead<T>& ahead, int64_t num_keys, int64_t head_dim,
                            const float* weights, int first, int stop, bool further, float* sums, int64_t ld) {
  for (int column = first; column < stop;) {
    const int left = stop - column, in_block = 4 - column % 4;
    const int count = kTakesTwoBlocks && in_block == 4 && left >= 8 ? 8 : left < in_block ? left : in_block;
    const float* from = weights + column / 4 * kBlockScores + column % 4;
    // Columns that are led past the rows one after the other fetch what follows together.
    const KeyRange fetched{kGroupKeys * (column - first) / (stop - first),
                           kGroupKeys * (column - first + count) / (stop - first)};
    const auto add = [&]<int G>() {
      add_value_rows<T, G>(group, ahead, fetched, num_keys, head_dim, from, further, sums + column * ld, ld);
    };
    switch (count) {
      case 8:
        if constexpr (kTakesTwoBlocks) add.template operator()<8>();
        break;
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

}  // namespace flagattn::FLAGATTN_ISA
