// P and dS of one panel against one key tile, keys in the rows and columns (query rows) in the lanes:
//
//   P^T  = 2^(factor * K Q^T - lse)          dS^T = P^T * (V dO^T - delta)          [* 1 - tanh^2 with softcap]
//
// P is final at once, since the forward kept its normaliser: no maximum, no rescaling.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/backward_scratch.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"

namespace flagattn::FLAGATTN_ISA {

// As the LSE of a column that takes no gradient: 2^(x - kNoWeight) is 0 for every finite x.
inline constexpr float kNoWeight = 1e30f;

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
};

template <int NV>
FLAGATTN_INLINE void multiply_keys(const TileProduct& product, int32_t key, int column, F32 (&c)[kMR][NV]) {
  clear(c);
  multiply_rows(product.rows + key * product.stride, product.stride, product.columns + column, kPanel, product.dim, c);
}

// Scores become tanh(softcap_factor * score); `slopes` takes 1 - tanh^2. The blocks are kPanel wide.
template <int NV>
inline void cap_strip(float softcap_factor, float* scores, float* slopes) {
  const F32 factor = F32::set1(softcap_factor), one = F32::set1(1.0f);
  for (int r = 0; r < kMR; ++r) {
    for (int v = 0; v < NV; ++v) {
      const int at = r * kPanel + v * F32::kLanes;
      const F32 capped = tanh(F32::load(scores + at) * factor);
      capped.store(scores + at);
      (one - capped * capped).store(slopes + at);
    }
  }
}

// Zero where a column does not see a key: also where NaN or Inf met there.
template <int NV>
FLAGATTN_INLINE void select_strip(const PanelMask& mask, int32_t key, int column, F32 (&c)[kMR][NV]) {
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const I32 begin = I32::load(mask.begin + column + v * F32::kLanes);
    const I32 end = I32::load(mask.end + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      const Mask seen = (begin < I32::set1(key + r + 1)) & (I32::set1(key + r) < end);
      c[r][v] = select(seen, c[r][v], F32::zero());
    }
  }
}

// Scores of a strip that is far for some of its columns and near for others: both, chosen lane by lane.
template <int NV>
inline void multiply_border(const GradientContext& context, const PanelMask& mask, int32_t key, int column,
                            F32 (&c)[kMR][NV]) {
  alignas(64) float near[kMR * kPanel];
  multiply_keys(context.near, key, column, c);
  store_block(c, near, kPanel);
  multiply_keys(context.far, key, column, c);
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const I32 far_end = I32::load(mask.far_end + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      const Mask far = I32::set1(context.first_key + key + r) < far_end;
      c[r][v] = select(far, c[r][v], F32::load(near + r * kPanel + v * F32::kLanes));
    }
  }
}

// Keys [key, key + kMR) of the tile against NV vectors from `column` on.
template <int NV>
inline void gradient_strip(const GradientContext& context, const BackwardPanel& panel, int32_t key, int column,
                           bool clear_strip) {
  const PanelMask& mask = panel.mask;
  const int32_t first = context.first_key + key;
  const bool some_far = context.piecewise && first < mask.far_end[column + NV * F32::kLanes - 1];
  const bool border = some_far && first + kMR > mask.far_end[column];
  float* weights = context.weights + key * kPanel + column;
  alignas(64) float slopes[kMR * kPanel];

  F32 c[kMR][NV];
  if (border) {
    multiply_border(context, mask, key, column, c);
  } else {
    multiply_keys(some_far ? context.far : context.near, key, column, c);
  }
  if (context.softcap_factor != 0.0f) {
    store_block(c, weights, kPanel);
    cap_strip<NV>(context.softcap_factor, weights, slopes);
    load_block(weights, kPanel, c);
  }
  const F32 factor = F32::set1(context.factor);
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const F32 lse = F32::load(panel.lse + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) c[r][v] = exp2(fms(c[r][v], factor, lse));
  }
  if (!clear_strip) select_strip(mask, first, column, c);
  store_block(c, weights, kPanel);

  multiply_keys(context.values, key, column, c);
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const F32 delta = F32::load(panel.delta + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      c[r][v] = F32::load(weights + r * kPanel + v * F32::kLanes) * (c[r][v] - delta);
    }
  }
  if (context.softcap_factor != 0.0f) {
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[r][v] = c[r][v] * F32::load(slopes + r * kPanel + v * F32::kLanes);
    }
  }
  if (!clear_strip) select_strip(mask, first, column, c);
  const int64_t at = key * kPanel + column;
  if (!border) {
    store_block(c, (some_far ? context.far_dscores : context.near_dscores) + at, kPanel);
    return;
  }
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const I32 far_end = I32::load(mask.far_end + column + v * F32::kLanes);
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      const Mask far = I32::set1(first + r) < far_end;
      const int64_t here = at + r * kPanel + v * F32::kLanes;
      select(far, F32::zero(), c[r][v]).store(context.near_dscores + here);
      select(far, c[r][v], F32::zero()).store(context.far_dscores + here);
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
