// Scores of few columns: four of them share a vector with kFourKeys keys, so that no lane idles when four query heads
// read one key/value head, and every key is loaded once for all columns. A block is four columns; the scores of block b
// lie as scores[b][key][4]. Each score is the same chain of multiply-adds as in scores.h.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/scores.h"
#include "attention/heuristics.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kFourKeys = F32::kLanes / 4;
inline constexpr int64_t kBlockScores = kCpuKeyTile * 4;  // from block to block

// Keys of a strip: as many as keep eight accumulators, a chain each, at work.
constexpr int strip_vectors(int blocks) { return blocks == 1 ? 8 : blocks == 2 ? 4 : 2; }
constexpr int strip_keys(int blocks) { return strip_vectors(blocks) * kFourKeys; }

template <typename T>
FLAGATTN_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 3);
}

// Dims [begin, end) of one strip: rows[i] is key i. queries[d][block] is a vector of the block's four columns, repeated
// for every key in it. `ahead` are rows of the same length that are wanted next. `further` adds to the scores.
template <typename T, int NB>
FLAGATTN_KERNEL void score_few(const T* const* rows, const T* const* ahead, const float* queries, int64_t begin,
                               int64_t end, bool further, float* scores) {
  constexpr int NV = strip_vectors(NB);
  constexpr int64_t kLine = 64 / sizeof(T);
  F32 c[NB][NV];
  clear(c);
  for (int64_t d = begin; d < end; d += 4) {
    if (d % kLine == 0) {
      FLAGATTN_UNROLL for (int r = 0; r < NV * kFourKeys; ++r) prefetch(ahead[r] + d);
    }
    const float* from = queries + d * NB * F32::kLanes;
    const auto keys = [&](int v) FLAGATTN_INLINE_LAMBDA {
      const T* four[kFourKeys];
      FLAGATTN_UNROLL for (int r = 0; r < kFourKeys; ++r) four[r] = rows[v * kFourKeys + r] + d;
      return load_fours(four);
    };
    const auto step = [&]<int I>(const F32& x, int v, const F32(&q)[NB]) FLAGATTN_INLINE_LAMBDA {
      const F32 spread = spread_in_fours<I>(x);
      FLAGATTN_UNROLL for (int b = 0; b < NB; ++b) c[b][v] = fma(spread, q[b], c[b][v]);
    };
    if constexpr (NB == 1) {
      const F32 q[4][1] = {{F32::load(from)},
                           {F32::load(from + F32::kLanes)},
                           {F32::load(from + 2 * F32::kLanes)},
                           {F32::load(from + 3 * F32::kLanes)}};
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
        const F32 x = keys(v);
        step.template operator()<0>(x, v, q[0]);
        step.template operator()<1>(x, v, q[1]);
        step.template operator()<2>(x, v, q[2]);
        step.template operator()<3>(x, v, q[3]);
      }
    } else {
      F32 x[NV];
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) x[v] = keys(v);
      const auto dim = [&]<int I>() FLAGATTN_INLINE_LAMBDA {
        F32 q[NB];
        FLAGATTN_UNROLL for (int b = 0; b < NB; ++b) q[b] = F32::load(from + (I * NB + b) * F32::kLanes);
        FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) step.template operator()<I>(x[v], v, q);
      };
      dim.template operator()<0>();
      dim.template operator()<1>();
      dim.template operator()<2>();
      dim.template operator()<3>();
    }
  }
  FLAGATTN_UNROLL for (int b = 0; b < NB; ++b) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      float* at = scores + b * kBlockScores + v * F32::kLanes;
      (further ? F32::load(at) + c[b][v] : c[b][v]).store(at);
    }
  }
}

// Keys [begin, end) of a tile, in whole strips.
template <typename T, int NB>
inline void score_few_keys(const T* const* rows, const T* const* ahead, const float* queries, int64_t head_dim,
                           int64_t begin, int64_t end, float* scores) {
  for (int64_t key = begin; key < end; key += strip_keys(NB)) {
    int64_t d = 0;
    int64_t n = head_dim <= kMostProducts ? head_dim : kPartProducts;
    while (d < head_dim) {
      const int64_t stop = d + n < head_dim ? d + n : head_dim;
      score_few<T, NB>(rows + key, ahead + key, queries, d, stop, d > 0, scores + key * 4);
      d = stop;
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
