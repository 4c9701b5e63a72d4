// Scores of few columns: four of them share a vector with kFourKeys keys, so that no lane idles when four query heads
// read one key/value head, and every key is loaded once for all columns. A block is four columns; the scores of block b
// lie as scores[b][key][4]. Each score is the same chain of multiply-adds as in scores.h.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/decode_rows.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/scores.h"
#include "attention/heuristics.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int64_t kBlockScores = kCpuKeyTile * 4;  // from block to block

// Keys of a strip: as many as keep eight accumulators, a chain each, at work.
constexpr int strip_vectors(int blocks) { return blocks == 1 ? 8 : blocks == 2 ? 4 : 2; }
constexpr int strip_keys(int blocks) { return strip_vectors(blocks) * kFourKeys; }
static_assert(strip_keys(1) == kGroupKeys);

// Some dims of kFourKeys keys, and one of them spread over the keys' columns.
template <typename T>
struct KeyDims {
  static constexpr int kDims = 4;
  F32 fours;

  static FLAGATTN_INLINE KeyDims load(const T* const* rows) { return {load_fours(rows)}; }
  template <int I>
  FLAGATTN_INLINE F32 spread() const {
    return spread_in_fours<I>(fours);
  }
};
template <>
struct KeyDims<BFloat16> {
  static constexpr int kDims = 8;
  Eights eights;

  static FLAGATTN_INLINE KeyDims load(const BFloat16* const* rows) { return {load_eights(rows)}; }
  template <int I>
  FLAGATTN_INLINE F32 spread() const {
    return spread_in_eights<I>(eights);
  }
};

// One head's share of a strip: its place in the rows, its queries and its scores.
struct StripHead {
  int64_t offset;
  const float* queries;
  float* scores;
};

// Dims [begin, end) of one strip of H heads. queries[d][block][4] are a block's four columns. `further` adds to the
// scores.
template <typename T, int NB, int H>
FLAGATTN_KERNEL void score_few(const T* const* rows, const StripHead (&heads)[H], const RowsAhead<T>& ahead,
                               int64_t begin, int64_t end, bool further) {
  constexpr int NV = strip_vectors(NB) / H, kAtOnce = NV < 4 ? NV : 4, kDims = KeyDims<T>::kDims;
  // Each line of the strip's rows brings one line of every row, a few after every kStep dims.
  constexpr int64_t kLine = 64 / sizeof(T), kKeys = NV * kFourKeys;
  constexpr int64_t kStep = kLine / kKeys > kDims ? kLine / kKeys : kDims, kFetched = kKeys * kStep / kLine;
  const int64_t apart = (heads[H - 1].offset - heads[0].offset) * static_cast<int64_t>(sizeof(T));
  F32 c[H][NB][NV];
  FLAGATTN_UNROLL for (int h = 0; h < H; ++h) clear(c[h]);
  for (int64_t d = begin; d < end; d += kDims) {
    if (d % kStep == 0) {
      typename RowsAhead<T>::Lines lines = ahead.lines(d / kLine * kLine);
      lines.rows += d % kLine / kStep * kFetched;
      FLAGATTN_UNROLL for (int h = 0; h < H; ++h, lines.offset += apart) {
        FLAGATTN_UNROLL for (int64_t row = 0; row < kFetched; ++row) lines.fetch(row);
      }
    }
    FLAGATTN_UNROLL for (int h = 0; h < H; ++h) {
      const float* from = heads[h].queries + d * NB * 4;
      FLAGATTN_UNROLL for (int first = 0; first < NV; first += kAtOnce) {
        KeyDims<T> keys[kAtOnce];
        FLAGATTN_UNROLL for (int v = 0; v < kAtOnce; ++v) {
          const T* some[kFourKeys];
          FLAGATTN_UNROLL for (int r = 0; r < kFourKeys; ++r) {
            some[r] = rows[(first + v) * kFourKeys + r] + heads[h].offset + d;
          }
          keys[v] = KeyDims<T>::load(some);
        }
        const auto dim = [&]<int I>() FLAGATTN_INLINE_LAMBDA {
          F32 q[NB];
          FLAGATTN_UNROLL for (int b = 0; b < NB; ++b) q[b] = repeat_four(from + (I * NB + b) * 4);
          FLAGATTN_UNROLL for (int v = 0; v < kAtOnce; ++v) {
            const F32 spread = keys[v].template spread<I>();
            FLAGATTN_UNROLL for (int b = 0; b < NB; ++b) c[h][b][first + v] = fma(spread, q[b], c[h][b][first + v]);
          }
        };
        dim.template operator()<0>();
        dim.template operator()<1>();
        dim.template operator()<2>();
        dim.template operator()<3>();
        if constexpr (kDims == 8) {
          dim.template operator()<4>();
          dim.template operator()<5>();
          dim.template operator()<6>();
          dim.template operator()<7>();
        }
      }
    }
  }
  FLAGATTN_UNROLL for (int h = 0; h < H; ++h) {
    FLAGATTN_UNROLL for (int b = 0; b < NB; ++b) {
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
        float* at = heads[h].scores + b * kBlockScores + v * F32::kLanes;
        (further ? F32::load(at) + c[h][b][v] : c[h][b][v]).store(at);
      }
    }
  }
}

// A group of keys of H heads, which `next` follows; `scores` are those of its first key.
template <typename T, int NB, int H>
inline void score_group(const RowGroup (&groups)[H], const RowGroup& next, const float* queries, int64_t queries_stride,
                        int64_t head_dim, float* scores, int64_t scores_stride) {
  constexpr int64_t kKeys = strip_keys(NB) / H;
  for (int64_t key = 0; key < kGroupKeys; key += kKeys) {
    StripHead heads[H];
    for (int h = 0; h < H; ++h) {
      heads[h] = {groups[h].offset, queries + h * queries_stride, scores + h * scores_stride + key * 4};
    }
    const RowGroup strip = groups[0].from(key);
    const RowsAhead<T> ahead(strip, key + kKeys < kGroupKeys ? strip.from(kKeys) : next, head_dim);
    int64_t d = 0;
    int64_t n = head_dim <= kMostProducts ? head_dim : kPartProducts;
    while (d < head_dim) {
      const int64_t stop = d + n < head_dim ? d + n : head_dim;
      score_few<T, NB, H>(strip.template typed<T>(), heads, ahead, d, stop, d > 0);
      d = stop;
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
