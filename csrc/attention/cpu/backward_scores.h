// P and dS of one panel against one key tile, keys in the rows and columns (query rows) in the lanes:
//
//   P^T = exp(factor * K Q^T - lse)          dS^T = P^T * (V dO^T - delta)          [* 1 - tanh^2 with softcap]
//
// Dropout multiplies P on its way to dV, and V dO^T, by the factors of its weights.
//
// P is final at once, since the forward kept its normaliser: no maximum, no rescaling.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/backward_products.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"

namespace flagattn::FLAGATTN_ISA {

// One operand of a key tile (row i at rows + i * stride, in whole strips of kMR) and the transposed panel it meets.
struct TileProduct {
  const float* rows;
  int64_t stride;
  const float* columns;  // [dim][kPanel]
  int64_t dim;
};

struct GradientContext {
  TileProduct near, far;  // K and Q^T; far where attention is piecewise
  TileProduct values;     // V and dO^T
  bool piecewise;
  int32_t first_key;     // of the tile
  float softcap_factor;  // scores become tanh(softcap_factor * score) where it is not 0
  float factor;          // of the exponent
  float* weights;        // [key][kPanel], as both dscores
  float *near_dscores, *far_dscores;
  // Biases and masks of the tile (score_terms.h) and factors of dropout, as the weights; null: none. Where terms are
  // additive, scores are multiplied by `unit` first.
  const float *terms, *dropout;
  bool additive;
  float unit;

  bool has_clear_keys() const { return softcap_factor == 0.0f && terms == nullptr && dropout == nullptr; }
};

// dst[key][column] = or += the product of kMR rows and NV vectors of columns.
template <int NV, bool kAdd>
FLAGATTN_KERNEL void multiply_strip_of_keys(const float* rows, int64_t stride, const float* columns, int64_t dim,
                                            float* dst) {
  F32 c[kMR][NV];
  clear(c);
  multiply_rows(rows, stride, columns, kPanel, dim, c);
  if constexpr (kAdd) {
    add_block(c, dst, kPanel);
  } else {
    store_block(c, dst, kPanel);
  }
}

// Longer sums are cut, so that rounding errors do not grow with the head dim.
inline constexpr int64_t kMostTerms = 64;

template <int NV>
FLAGATTN_INLINE void multiply_keys(const TileProduct& product, int32_t key, int column, float* dst) {
  const float* rows = product.rows + key * product.stride;
  const float* columns = product.columns + column;
  const int64_t dim = product.dim;
  multiply_strip_of_keys<NV, false>(rows, product.stride, columns, dim < kMostTerms ? dim : kMostTerms, dst);
  for (int64_t d = kMostTerms; d < dim; d += kMostTerms) {
    const int64_t rest = dim - d;
    multiply_strip_of_keys<NV, true>(rows + d, product.stride, columns + d * kPanel,
                                     rest < kMostTerms ? rest : kMostTerms, dst);
  }
}

// Rows of near strips are K's, of far ones K2's; border strips are far for some of their columns and near for others.
enum class StripKind { kNear, kFar, kBorder };

template <int NV>
FLAGATTN_INLINE StripKind kind_of(const GradientContext& context, const PanelMask& mask, int32_t key, int column) {
  const int32_t first = context.first_key + key;
  if (!context.piecewise || first >= mask.far_end[column + NV * F32::kLanes - 1]) return StripKind::kNear;
  return first + kMR > mask.far_end[column] ? StripKind::kBorder : StripKind::kFar;
}

// Scores of one strip: to `weights`, a border strip's far scores to `far_dscores`.
template <int NV>
FLAGATTN_INLINE void score_strip(const GradientContext& context, StripKind kind, int32_t key, int column) {
  const int64_t at = key * kPanel + column;
  multiply_keys<NV>(kind == StripKind::kFar ? context.far : context.near, key, column, context.weights + at);
  if (kind == StripKind::kBorder) multiply_keys<NV>(context.far, key, column, context.far_dscores + at);
}

// dP of one strip, to where its dS will be. A pass of its own: the transposed Q and dO of a panel don't fit into L1
// together.
template <int NV>
FLAGATTN_INLINE void differentiate_strip(const GradientContext& context, StripKind kind, int32_t key, int column) {
  const int64_t at = key * kPanel + column;
  multiply_keys<NV>(context.values, key, column,
                    (kind == StripKind::kFar ? context.far_dscores : context.near_dscores) + at);
}

// P and dS of keys [begin, end) that all columns see, without softcap: nearly all of them.
template <int NV>
FLAGATTN_KERNEL void weigh_clear_keys(const BackwardPanel& panel, float factor, int32_t begin, int32_t end, int column,
                                      float* weights, float* dscores) {
  const F32 scale = F32::set1(factor);
  F32 lse[NV], delta[NV];
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    lse[v] = F32::load(panel.lse + column + v * F32::kLanes);
    delta[v] = F32::load(panel.delta + column + v * F32::kLanes);
  }
  for (int64_t at = begin * kPanel + column; at < end * kPanel; at += kPanel) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      float *weight = weights + at + v * F32::kLanes, *dscore = dscores + at + v * F32::kLanes;
      const F32 p = exp(fms(F32::load(weight), scale, lse[v]));
      p.store(weight);
      (p * (F32::load(dscore) - delta[v])).store(dscore);
    }
  }
}

// The same for one strip of any kind. What a column does not see becomes zero, also where NaN or Inf met there.
template <int NV>
FLAGATTN_KERNEL void weigh_edge_strip(const GradientContext& context, const BackwardPanel& panel, StripKind kind,
                                      int32_t key, int column) {
  const PanelMask& mask = panel.mask;
  const F32 zero = F32::zero(), one = F32::set1(1.0f);
  for (int v = 0; v < NV; ++v) {
    const int c = column + v * F32::kLanes;
    const I32 begin = I32::load(mask.begin + c), end = I32::load(mask.end + c), far_end = I32::load(mask.far_end + c);
    const F32 lse = F32::load(panel.lse + c), delta = F32::load(panel.delta + c);
    for (int r = 0; r < kMR; ++r) {
      const int64_t at = (key + r) * kPanel + c;
      const int32_t number = context.first_key + key + r;
      Mask seen = (begin < I32::set1(number + 1)) & (I32::set1(number) < end);
      const Mask far = I32::set1(number) < far_end;
      F32 score = F32::load(context.weights + at);
      if (kind == StripKind::kBorder) score = select(far, F32::load(context.far_dscores + at), score);
      F32 slope = one;
      if (context.softcap_factor != 0.0f) {
        score = tanh(score * F32::set1(context.softcap_factor));
        slope = one - score * score;
      }
      if (context.terms != nullptr) {
        const F32 term = F32::load(context.terms + at);
        seen = seen & (term > F32::set1(kLeastTerm));
        if (context.additive) score = fma(score, F32::set1(context.unit), term);
      }
      const F32 p = select(seen, exp(fms(score, F32::set1(context.factor), lse)), zero);
      float* dscores = kind == StripKind::kFar ? context.far_dscores : context.near_dscores;
      F32 weight = p, dp = F32::load(dscores + at);
      if (context.dropout != nullptr) {
        const F32 kept = F32::load(context.dropout + at);
        weight = p * kept;
        dp = select(kept > zero, dp * kept, zero);
      }
      weight.store(context.weights + at);
      const F32 ds = select(seen, p * (dp - delta) * slope, zero);
      if (kind == StripKind::kBorder) {
        select(far, zero, ds).store(context.near_dscores + at);
        select(far, ds, zero).store(context.far_dscores + at);
      } else {
        ds.store(dscores + at);
      }
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
