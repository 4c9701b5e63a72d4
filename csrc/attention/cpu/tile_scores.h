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

// Where far keys, the earlier ones, are more for later columns: vectors from first_far on have far keys in the block,
// those before end_near have near ones.
struct TileBorder {
  int first_far, end_near;
};

inline TileBorder border_of(const TileContext& context, const PanelMask& mask, const TileSpan& span) {
  const int stop = span.first_vector + span.num_vectors;
  if (!context.piecewise) return {stop, stop};
  const int32_t at = static_cast<int32_t>(span.begin) * kTileRows, rest = context.num_keys - at;
  const int32_t key = context.first_key + at, end = key + (rest < kTileRows ? rest : kTileRows);
  TileBorder border{span.first_vector, stop};
  while (border.first_far < stop && mask.far_end[last_column(border.first_far)] <= key) ++border.first_far;
  while (border.end_near > span.first_vector && mask.far_end[first_column(border.end_near - 1)] >= end) {
    --border.end_near;
  }
  return border;
}

// A block that has both: some vectors need both products.
inline void multiply_border(const TileContext& context, const PanelMask& mask, const TileSpan& span,
                            const TileBorder& border, int64_t steps, float* scores, RowList& ahead) {
  const int stop = span.first_vector + span.num_vectors;
  const auto vectors = [&](int first, int end) { return TileSpan{span.begin, span.end, first, end - first}; };
  multiply_span(context.near, vectors(span.first_vector, border.end_near), steps, scores, ahead);
  alignas(64) float far[kTileRows * kPanel];
  multiply_span(context.far, vectors(border.first_far, stop), steps, far, ahead);
  const int32_t key = context.first_key + static_cast<int32_t>(span.begin) * kTileRows;
  for (int v = border.first_far; v < stop; ++v) {
    const int column = first_column(v);
    const I32 far_end = I32::load(mask.far_end + column);
    for (int r = 0; r < kTileRows; ++r) {
      const int i = r * kPanel + column;
      select(I32::set1(key + r) < far_end, F32::load(far + i), F32::load(scores + i)).store(scores + i);
    }
  }
}

// The vectors that see some of a block.
inline TileSpan span_of_block(const Runs& runs, int64_t block) {
  int first = kNV, end = 0;
  for (const Run& run : runs) {
    if (run.end <= block * kTileRows || run.begin >= (block + 1) * kTileRows) continue;
    if (run.first_vector < first) first = run.first_vector;
    if (run.first_vector + run.num_vectors > end) end = run.first_vector + run.num_vectors;
  }
  return {block, block + 1, first, first < end ? end - first : 0};
}

// The products of a tile, of whole blocks that some column sees; neighbouring blocks that are alike at once.
inline void multiply_tile(const TileContext& context, const PanelMask& mask, const Runs& runs, float* scores,
                          RowList& ahead) {
  const int64_t steps = depth_steps(context.head_dim), stop = row_blocks(runs.at[runs.count - 1].end);
  const TileOperands* operands = nullptr;
  TileSpan span{};
  const auto finish_span = [&] {
    if (operands != nullptr) {
      multiply_span(*operands, span, steps, scores + span.begin * kTileRows * kPanel, ahead);
    }
    operands = nullptr;
  };
  for (int64_t block = runs.at[0].begin / kTileRows; block < stop; ++block) {
    const TileSpan next = span_of_block(runs, block);
    const TileBorder border = border_of(context, mask, next);
    const bool none_far = border.first_far == next.first_vector + next.num_vectors;
    const bool none_near = border.end_near == next.first_vector;
    const TileOperands* alike = none_far ? &context.near : none_near ? &context.far : nullptr;
    if (next.num_vectors > 0 && alike != nullptr && alike == operands && span.first_vector == next.first_vector &&
        span.num_vectors == next.num_vectors) {
      span.end = next.end;
      continue;
    }
    finish_span();
    if (next.num_vectors == 0) continue;
    span = next;
    operands = alike;
    if (alike == nullptr) {
      multiply_border(context, mask, next, border, steps, scores + block * kTileRows * kPanel, ahead);
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
