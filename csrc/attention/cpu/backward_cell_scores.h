// P and dS of one cell: 32 keys against the 32 columns of a panel (backward_scores.h has the formulas), rounded to bf16
// in the forms that the products of gradients read.
#pragma once

#include <cstdint>

#include "arch/simd/tiles.h"
#include "attention/cpu/backward_cell_products.h"
#include "attention/cpu/backward_cells.h"
#include "attention/cpu/backward_scores.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kCellVectors = kCell / F32::kLanes;

// K Q^T and V dO^T of one cell.
struct CellProduct {
  const BFloat16 *keys, *queries, *values, *douts;
  int64_t steps, steps_v;  // cells of dims
  float *scores, *dweights;
};

// dS of one cell, on one side where attention is piecewise.
struct CellGradient {
  BFloat16 *dscores, *dscore_pairs;
};

// Two keys: even and odd rows of P, to one cell; and of dS, to both of its forms.
FLAGATTN_INLINE void store_weights(const F32 (&p)[2][kCellVectors], int key, BFloat16* weights) {
  FLAGATTN_UNROLL for (int r = 0; r < 2; ++r) store_halves(p[r][0], p[r][1], weights + (key + r) * kCell);
}
FLAGATTN_INLINE void store_dscores(const F32 (&ds)[2][kCellVectors], int key, const CellGradient& to) {
  store_weights(ds, key, to.dscores);
  FLAGATTN_UNROLL for (int v = 0; v < kCellVectors; ++v) {
    store_pairs(ds[0][v], ds[1][v], to.dscore_pairs + v * kTileSize + key / 2 * kTileDepth);
  }
}

// A cell whose pairs are all seen, without softcap: nearly all of them. Two keys at a time.
FLAGATTN_KERNEL void weigh_clear_cell(const BackwardPanel& panel, float factor, const CellScores& from,
                                      BFloat16* weights, const CellGradient& gradient) {
  const F32 scale = F32::set1(factor);
  F32 lse[kCellVectors], delta[kCellVectors];
  FLAGATTN_UNROLL for (int v = 0; v < kCellVectors; ++v) {
    lse[v] = F32::load(panel.lse + v * F32::kLanes);
    delta[v] = F32::load(panel.delta + v * F32::kLanes);
  }
  for (int key = 0; key < kCell; key += 2) {
    F32 p[2][kCellVectors], ds[2][kCellVectors];
    FLAGATTN_UNROLL for (int r = 0; r < 2; ++r) {
      FLAGATTN_UNROLL for (int v = 0; v < kCellVectors; ++v) {
        const int64_t at = (key + r) * kPanel + v * F32::kLanes;
        p[r][v] = exp(fms(F32::load(from.scores + at), scale, lse[v]));
        ds[r][v] = p[r][v] * (F32::load(from.dweights + at) - delta[v]);
      }
    }
    store_weights(p, key, weights);
    store_dscores(ds, key, gradient);
  }
}

FLAGATTN_KERNEL void multiply_cell(const CellProduct& product) {
  multiply_cells(product.keys, product.queries, product.steps, product.scores);
  multiply_cells(product.values, product.douts, product.steps_v, product.dweights);
}

// fp32 [key][kPanel] of the cell's first `num_keys` keys, rounded; zeros behind them.
template <typename Store>
FLAGATTN_INLINE void round_cell(const float* from, int num_keys, Store&& store) {
  for (int key = 0; key < kCell; key += 2) {
    F32 rows[2][kCellVectors];
    for (int r = 0; r < 2; ++r) {
      for (int v = 0; v < kCellVectors; ++v) {
        rows[r][v] = key < num_keys ? F32::load(from + (key + r) * kPanel + v * F32::kLanes) : F32::zero();
      }
    }
    store(rows, key);
  }
}

// A cell of any kind. `context` counts keys from the cell's first; P and dS pass through its fp32 buffers.
inline void weigh_edge_cell(const GradientContext& context, const BackwardPanel& panel, StripKind kind, int num_keys,
                            BFloat16* weights, const CellGradient& near, const CellGradient& far) {
  for (int key = 0; key < num_keys; key += kMR) weigh_edge_strip<kCellVectors>(context, panel, kind, key, 0);
  const int rows = strip_ceil(num_keys);
  round_cell(context.weights, rows, [&](const auto& p, int key) { store_weights(p, key, weights); });
  if (kind != StripKind::kFar) {
    round_cell(context.near_dscores, rows, [&](const auto& ds, int key) { store_dscores(ds, key, near); });
  }
  if (kind != StripKind::kNear) {
    round_cell(context.far_dscores, rows, [&](const auto& ds, int key) { store_dscores(ds, key, far); });
  }
}

}  // namespace flagattn::FLAGATTN_ISA
