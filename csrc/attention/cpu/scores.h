// Scores of one run of a key tile: S^T[key][column] = sum over d of K[key][d] * Q^T[d][column], masked where the run is
// not clear, and the largest score of every column.
#pragma once

#include <cstdint>
#include <limits>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"

namespace flagattn::FLAGATTN_ISA {

// One key operand of a tile and the query panel it meets.
struct ScoreOperands {
  const float* keys;  // row i of the tile at keys + i * key_stride, in whole strips of kMR rows
  int64_t key_stride;
  const float* queries;  // [head_dim][kPanel]
};

struct ScoreContext {
  int64_t head_dim;
  int32_t first_key, num_keys;  // of the tile
  ScoreOperands near;
  ScoreOperands far;  // piecewise only
  bool piecewise;
  // Scores become tanh(softcap_factor * score) where it is not 0; the factor that is left is part of the exponent's.
  float softcap_factor;
};

// Longer sums are cut into parts of this many products, so that rounding errors do not grow with the head dim.
inline constexpr int64_t kMostProducts = 128;

template <int NV>
FLAGATTN_INLINE void multiply_keys(const ScoreOperands& operands, int32_t key, int column, int64_t head_dim,
                                   F32 (&c)[kMR][NV]) {
  const float* keys = operands.keys + key * operands.key_stride;
  clear(c);
  if (head_dim <= kMostProducts) {
    multiply_rows(keys, operands.key_stride, operands.queries + column, kPanel, head_dim, c);
    return;
  }
  alignas(64) float sums[kMR * NV * F32::kLanes] = {};
  for (int64_t d = 0; d < head_dim; d += kMostProducts) {
    const int64_t n = head_dim - d < kMostProducts ? head_dim - d : kMostProducts;
    multiply_rows(keys + d, operands.key_stride, operands.queries + d * kPanel + column, kPanel, n, c);
    F32 before[kMR][NV];
    load_block(sums, NV * F32::kLanes, before);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) before[r][v] = before[r][v] + c[r][v];
    }
    store_block(before, sums, NV * F32::kLanes);
    clear(c);
  }
  load_block(sums, NV * F32::kLanes, c);
}

// The strip crosses the border of at least one column: both products, chosen lane by lane.
template <int NV>
inline void multiply_border_strip(const ScoreContext& context, const PanelMask& mask, int32_t key, int column,
                                  float* scores) {
  F32 c[kMR][NV];
  multiply_keys(context.near, key, column, context.head_dim, c);
  store_block(c, scores + key * kPanel + column, kPanel);
  multiply_keys(context.far, key, column, context.head_dim, c);
  for (int v = 0; v < NV; ++v) {
    const I32 far_end = I32::load(mask.far_end + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      float* at = scores + (key + r) * kPanel + column + v * F32::kLanes;
      select(I32::set1(context.first_key + key + r) < far_end, c[r][v], F32::load(at)).store(at);
    }
  }
}

template <int NV>
FLAGATTN_INLINE void mask_strip(const PanelMask& mask, int32_t key, int column, F32 (&c)[kMR][NV]) {
  const F32 hidden = F32::set1(-std::numeric_limits<float>::infinity());
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const I32 begin = I32::load(mask.begin + column + v * F32::kLanes);
    const I32 end = I32::load(mask.end + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      const Mask seen = (begin < I32::set1(key + r + 1)) & (I32::set1(key + r) < end);
      c[r][v] = select(seen, c[r][v], hidden);
    }
  }
}

// Writes scores[key][column] for the run and raises largest[v].
template <int NV>
inline void score_run(const ScoreContext& context, const PanelMask& mask, const Run& run, float* scores, F32* largest) {
  const int column = run.first_vector * F32::kLanes;
  F32 most[NV];
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) most[v] = largest[run.first_vector + v];
  // Keys before all_far are far for every column, keys from any_far on for none. Keys that pad the tile are what the
  // last one is.
  int32_t all_far = 0, any_far = 0;
  if (context.piecewise) {
    all_far = mask.far_end[column] - context.first_key;
    any_far = mask.far_end[column + NV * F32::kLanes - 1] - context.first_key;
    if (all_far >= context.num_keys) all_far = run.end;
  }

  for (int32_t key = run.begin; key < run.end; key += kMR) {
    F32 c[kMR][NV];
    float* at = scores + key * kPanel + column;
    if (key < any_far && key + kMR > all_far) {
      multiply_border_strip<NV>(context, mask, key, column, scores);
      load_block(at, kPanel, c);
    } else {
      multiply_keys(key < any_far ? context.far : context.near, key, column, context.head_dim, c);
    }
    if (context.softcap_factor != 0.0f) {
      store_block(c, at, kPanel);
      for (int r = 0; r < kMR; ++r) {
        for (int v = 0; v < NV; ++v) {
          float* score = at + r * kPanel + v * F32::kLanes;
          tanh(F32::load(score) * F32::set1(context.softcap_factor)).store(score);
        }
      }
      load_block(at, kPanel, c);
    }
    if (key < run.clear_begin || key >= run.clear_end) mask_strip(mask, context.first_key + key, column, c);
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      F32 strip = c[0][v];
      FLAGATTN_UNROLL for (int r = 1; r < kMR; ++r) strip = max(strip, c[r][v]);
      most[v] = max(most[v], strip);
    }
    store_block(c, at, kPanel);
  }
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) largest[run.first_vector + v] = most[v];
}

}  // namespace flagattn::FLAGATTN_ISA
