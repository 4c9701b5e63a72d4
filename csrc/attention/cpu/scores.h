// Scores of one run of a key tile: S^T[key][column] = sum over d of K[key][d] * Q^T[d][column], masked where the run is
// not clear, and the largest score of every column.
#pragma once

#include <cstdint>
#include <limits>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"

namespace flagattn::FLAGATTN_ISA {

// One key operand of a tile and the query panel it meets.
struct ScoreOperands {
  const float* keys;  // row i of the tile at keys + i * key_stride, in whole strips of kMR rows
  int64_t key_stride;
  const float* queries;  // [head_dim][kPanel]
};

// What becomes of the products of a tile.
struct ScoreRules {
  int64_t head_dim;
  int32_t first_key, num_keys;  // of the tile
  bool piecewise;
  // Scores become tanh(softcap_factor * score) where it is not 0; the factor that is left is part of the exponent's.
  float softcap_factor;
  // Biases and masks of the tile (score_terms.h), [key][kPanel]; null: none. Where they are additive, scores are
  // multiplied by `unit` first.
  const float* terms;
  bool additive;
  float unit;

  bool plain() const { return softcap_factor == 0.0f && terms == nullptr; }
};

struct ScoreContext : ScoreRules {
  ScoreOperands near;
  ScoreOperands far;  // piecewise only
};

// Longer sums are cut into shorter parts, so that rounding errors do not grow with the head dim.
inline constexpr int64_t kMostProducts = 128;
inline constexpr int64_t kPartProducts = 64;

// The scores of kStrips strips of kMR keys; raises most[v] to the largest of them.
template <int kStrips, int NV>
FLAGATTN_INLINE void score_block(const float* keys, int64_t key_stride, const float* queries, int64_t head_dim,
                                 float* scores, F32* most) {
  F32 c[kStrips * kMR][NV];
  clear(c);
  multiply_rows(keys, key_stride, queries, kPanel, head_dim, c);
  FLAGATTN_UNROLL for (int strip = 0; strip < kStrips; ++strip) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      F32 largest = c[strip * kMR][v];
      FLAGATTN_UNROLL for (int r = 1; r < kMR; ++r) largest = max(largest, c[strip * kMR + r][v]);
      most[v] = max(most[v], largest);
    }
  }
  store_block(c, scores, kPanel);
}

// The same of num_strips strips, a block after the other.
template <int NV>
FLAGATTN_KERNEL void score_strips(const float* keys, int64_t key_stride, int64_t num_strips, const float* queries,
                                  int64_t head_dim, float* scores, F32* most) {
  constexpr int kStrips = kBlockRows<NV> / kMR;
  for (; num_strips >= kStrips; num_strips -= kStrips) {
    score_block<kStrips, NV>(keys, key_stride, queries, head_dim, scores, most);
    keys += kStrips * kMR * key_stride;
    scores += kStrips * kMR * kPanel;
  }
  if constexpr (kStrips > 1) {
    if (num_strips > 0) score_block<1, NV>(keys, key_stride, queries, head_dim, scores, most);
  }
}

// Adds to the scores instead, and leaves the maximum to the caller.
template <int NV>
FLAGATTN_KERNEL void score_strip_further(const float* keys, int64_t key_stride, const float* queries, int64_t head_dim,
                                         float* scores) {
  F32 c[kMR][NV];
  clear(c);
  multiply_rows(keys, key_stride, queries, kPanel, head_dim, c);
  FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      float* at = scores + r * kPanel + v * F32::kLanes;
      (F32::load(at) + c[r][v]).store(at);
    }
  }
}

// Calls body(vector, row, score) for every vector of a strip and stores what it returns.
template <int NV, typename Body>
FLAGATTN_INLINE void update_strip(float* scores, Body&& body) {
  for (int v = 0; v < NV; ++v) {
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      float* at = scores + r * kPanel + v * F32::kLanes;
      body(v, r, F32::load(at)).store(at);
    }
  }
}

template <int NV>
FLAGATTN_INLINE void score_strip(const ScoreContext& context, const ScoreOperands& operands, int32_t key, int column,
                                 float* scores, F32* most) {
  const float* keys = operands.keys + key * operands.key_stride;
  const float* queries = operands.queries + column;
  int64_t n = context.head_dim <= kMostProducts ? context.head_dim : kPartProducts;
  score_strips<NV>(keys, operands.key_stride, 1, queries, n, scores, most);
  for (int64_t d = n; d < context.head_dim; d += n) {
    n = context.head_dim - d < kPartProducts ? context.head_dim - d : kPartProducts;
    score_strip_further<NV>(keys + d, operands.key_stride, queries + d * kPanel, n, scores);
  }
}

// The strip crosses the border of at least one column: both products, chosen lane by lane.
template <int NV>
inline void score_border_strip(const ScoreContext& context, const PanelMask& mask, int32_t key, int column,
                               float* scores) {
  F32 unused[NV];
  for (F32& vector : unused) vector = F32::zero();
  alignas(64) float far[kMR * kPanel];
  score_strip<NV>(context, context.far, key, column, far, unused);
  score_strip<NV>(context, context.near, key, column, scores, unused);
  update_strip<NV>(scores, [&](int v, int r, F32 near) {
    const I32 far_end = I32::load(mask.far_end + column + v * F32::kLanes);
    return select(I32::set1(context.first_key + key + r) < far_end, F32::load(far + r * kPanel + v * F32::kLanes),
                  near);
  });
}

template <int NV>
inline void join_terms(const ScoreRules& context, int32_t key, int column, float* scores) {
  const float* terms = context.terms + key * kPanel + column;
  const F32 unit = F32::set1(context.unit);
  const auto term = [terms](int v, int r) { return F32::load(terms + r * kPanel + v * F32::kLanes); };
  if (context.additive) {
    update_strip<NV>(scores, [&](int v, int r, F32 score) { return with_term<true>(score, unit, term(v, r)); });
  } else {
    update_strip<NV>(scores, [&](int v, int r, F32 score) { return with_term<false>(score, unit, term(v, r)); });
  }
}

template <int NV>
inline void mask_strip(const PanelMask& mask, int32_t key, int column, float* scores) {
  const F32 hidden = F32::set1(-std::numeric_limits<float>::infinity());
  update_strip<NV>(scores, [&](int v, int r, F32 score) {
    const I32 begin = I32::load(mask.begin + column + v * F32::kLanes);
    const I32 end = I32::load(mask.end + column + v * F32::kLanes);
    return select((begin < I32::set1(key + r + 1)) & (I32::set1(key + r) < end), score, hidden);
  });
}

// Products of a strip become scores, the largest of which raise most[v].
template <int NV>
FLAGATTN_INLINE void finish_strip(const ScoreRules& rules, const PanelMask& mask, int32_t key, int column, bool clear,
                                  float* at, F32* most) {
  if (rules.softcap_factor != 0.0f) {
    update_strip<NV>(at, [&](int, int, F32 score) { return tanh(score * F32::set1(rules.softcap_factor)); });
  }
  if (rules.terms != nullptr) join_terms<NV>(rules, key, column, at);
  if (!clear) mask_strip<NV>(mask, rules.first_key + key, column, at);
  update_strip<NV>(at, [&](int v, int, F32 score) {
    most[v] = max(most[v], score);
    return score;
  });
}

// Writes scores[key][column] for the run and raises largest[v].
template <int NV>
inline void score_run(const ScoreContext& context, const PanelMask& mask, const Run& run, float* scores, F32* largest) {
  const int column = run.first_vector * F32::kLanes;
  F32* most = largest + run.first_vector;
  // Keys before all_far are far for every column, keys from any_far on for none. Keys that pad the tile are what the
  // last one is.
  int32_t all_far = 0, any_far = 0;
  if (context.piecewise) {
    all_far = mask.far_end[column] - context.first_key;
    any_far = mask.far_end[column + NV * F32::kLanes - 1] - context.first_key;
    if (all_far >= context.num_keys) all_far = run.end;
  }
  const bool plain_maximum = context.plain() && context.head_dim <= kMostProducts;

  for (int32_t key = run.begin; key < run.end;) {
    float* at = scores + key * kPanel + column;
    const bool far = key < any_far;
    const bool border = far && key + kMR > all_far;
    const bool clear = key >= run.clear_begin && key < run.clear_end;
    if (!border && clear && plain_maximum) {
      // All strips that are alike at once.
      int32_t end = run.clear_end;
      if (far && all_far < end) end = strip_floor(all_far);
      const ScoreOperands& operands = far ? context.far : context.near;
      score_strips<NV>(operands.keys + key * operands.key_stride, operands.key_stride, (end - key) / kMR,
                       operands.queries + column, context.head_dim, at, most);
      key = end;
      continue;
    }
    F32 unused[NV];
    for (F32& vector : unused) vector = F32::zero();
    if (border) {
      score_border_strip<NV>(context, mask, key, column, at);
    } else {
      score_strip<NV>(context, far ? context.far : context.near, key, column, at, unused);
    }
    finish_strip<NV>(context, mask, key, column, clear, at, most);
    key += kMR;
  }
}

}  // namespace flagattn::FLAGATTN_ISA
