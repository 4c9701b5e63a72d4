// Scores of a key tile by products of tiles: S^T[key][column] = sum over d of K[key][d] * Q^T[d][column], one chain
// over d, 32 at a time. Sixteen keys meet all vectors at once, so that the keys are read once.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "arch/simd/tiles.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/scores.h"
#include "attention/cpu/tile_blocks.h"
#include "attention/cpu/tile_pack.h"

namespace flagattn::FLAGATTN_ISA {

// One key operand of a tile and the query panel it meets.
struct TileOperands {
  const BFloat16* keys;  // of sixteen keys, row_stride apart; then the next 32 dims; then the next sixteen keys
  int64_t row_stride, step_stride, block_stride;
  const BFloat16* queries;
};

struct TileContext : ScoreRules {
  TileOperands near;
  TileOperands far;  // piecewise only
};

// Blocks of sixteen keys, [begin, end), that the same vectors see, and their products.
struct TileSpan {
  int64_t begin, end;
  int first_vector, num_vectors;
};

// Writes scores[key][column] from the span's first key on.
template <int NV>
FLAGATTN_KERNEL void multiply_keys(const TileOperands& operands, const TileSpan& span, int64_t steps, float* scores,
                                   RowList& ahead) {
  const int column = first_column(span.first_vector);
  const TileFactors factors{operands.keys + span.begin * operands.block_stride, operands.row_stride,
                            operands.step_stride, operands.queries + 2 * column, steps};
  multiply_blocks<NV>(
      factors, operands.block_stride, span.end - span.begin,
      [&](int64_t block) { return scores + block * kTileRows * kPanel + column; }, [&](int64_t) { ahead.step(); });
}

inline void multiply_span(const TileOperands& operands, const TileSpan& span, int64_t steps, float* scores,
                          RowList& ahead) {
  with_vectors(span.num_vectors, [&]<int NV>() { multiply_keys<NV>(operands, span, steps, scores, ahead); });
}

// Far keys are the earlier ones, more of them for later columns: near the border some vectors need both products.
inline void score_piecewise_block(const TileContext& context, const PanelMask& mask, const TileSpan& span,
                                  int64_t steps, float* scores, RowList& ahead) {
  const int32_t at = static_cast<int32_t>(span.begin) * kTileRows, rest = context.num_keys - at;
  const int32_t key = context.first_key + at, end = key + (rest < kTileRows ? rest : kTileRows);
  const int stop = span.first_vector + span.num_vectors;
  int first_far = span.first_vector, end_near = stop;
  while (first_far < stop && mask.far_end[last_column(first_far)] <= key) ++first_far;
  while (end_near > span.first_vector && mask.far_end[first_column(end_near - 1)] >= end) --end_near;
  if (end_near == span.first_vector) return multiply_span(context.far, span, steps, scores, ahead);
  multiply_span(context.near, {span.begin, span.end, span.first_vector, end_near - span.first_vector}, steps, scores,
                ahead);
  if (first_far == stop) return;
  alignas(64) float far[kTileRows * kPanel];
  multiply_span(context.far, {span.begin, span.end, first_far, stop - first_far}, steps, far, ahead);
  for (int v = first_far; v < stop; ++v) {
    const int column = first_column(v);
    const I32 far_end = I32::load(mask.far_end + column);
    for (int r = 0; r < kTileRows; ++r) {
      const int i = r * kPanel + column;
      select(I32::set1(key + r) < far_end, F32::load(far + i), F32::load(scores + i)).store(scores + i);
    }
  }
}

// The products of a tile, of whole blocks that some column sees.
inline void multiply_tile(const TileContext& context, const PanelMask& mask, const Runs& runs, float* scores,
                          RowList& ahead) {
  const int64_t steps = depth_steps(context.head_dim), stop = row_blocks(runs.at[runs.count - 1].end);
  TileSpan span{0, 0, 0, 0};
  const auto finish_span = [&] {
    if (span.num_vectors > 0) {
      multiply_span(context.near, span, steps, scores + span.begin * kTileRows * kPanel, ahead);
    }
  };
  for (int64_t block = runs.at[0].begin / kTileRows; block < stop; ++block) {
    int first = kNV, end = 0;
    for (const Run& run : runs) {
      if (run.end <= block * kTileRows || run.begin >= (block + 1) * kTileRows) continue;
      if (run.first_vector < first) first = run.first_vector;
      if (run.first_vector + run.num_vectors > end) end = run.first_vector + run.num_vectors;
    }
    const TileSpan next{block, block + 1, first, first < end ? end - first : 0};
    if (context.piecewise) {
      if (next.num_vectors > 0) {
        score_piecewise_block(context, mask, next, steps, scores + block * kTileRows * kPanel, ahead);
      }
    } else if (span.first_vector == next.first_vector && span.num_vectors == next.num_vectors) {
      span.end = next.end;
    } else {
      finish_span();
      span = next;
    }
  }
  finish_span();
}

// Products of a run become scores; raises largest[v].
template <int NV>
FLAGATTN_KERNEL void finish_scores(const TileContext& context, const PanelMask& mask, const Run& run, float* scores,
                                   F32* largest) {
  const int column = run.first_vector * F32::kLanes;
  F32* most = largest + run.first_vector;
  for (int32_t key = run.begin; key < run.end; key += kMR) {
    float* at = scores + key * kPanel + column;
    const bool clear = key >= run.clear_begin && key < run.clear_end;
    if (!clear || !context.plain()) {
      finish_strip<NV>(context, mask, key, column, clear, at, most);
      continue;
    }
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      F32 large[2] = {F32::load(at + v * F32::kLanes), F32::load(at + kPanel + v * F32::kLanes)};
      FLAGATTN_UNROLL for (int r = 2; r < kMR; ++r) {
        large[r % 2] = max(large[r % 2], F32::load(at + r * kPanel + v * F32::kLanes));
      }
      most[v] = max(most[v], max(large[0], large[1]));
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
