// Where a worker of the forward keeps its item: laid out once per call, carved from the thread's scratch block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/softmax.h"
#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

// Per panel of the item: queries (q and, piecewise, q2) and outputs transposed, statistics and masks. Per key tile:
// keys as rows, values as strips. Scores of one panel against one tile, and that tile's part of the outputs where it is
// summed run by run.
struct ForwardScratch {
  float *queries, *far_queries, *outputs, *scores, *sums, *keys, *far_keys, *values;
  PanelStatistics* statistics;
  PanelMask* masks;
};

struct ForwardLayout {
  size_t queries, far_queries, outputs, scores, sums, keys, far_keys, values, statistics, masks, total;
};

inline ForwardLayout forward_layout(const AttentionParams& params, int64_t panels) {
  size_t at = 0;
  const auto take = [&at](size_t bytes) {
    const size_t start = at;
    at += (bytes + 63) / 64 * 64;
    return start;
  };
  const auto floats = [&](int64_t count) { return take(static_cast<size_t>(count) * sizeof(float)); };
  const int64_t dim = padded_dim(params.head_dim), dim_v = padded_dim(params.head_dim_v);
  ForwardLayout layout;
  layout.queries = floats(panels * kPanel * dim);
  layout.far_queries = floats(params.is_piecewise() ? panels * kPanel * dim : 0);
  layout.outputs = floats(panels * kPanel * dim_v);
  layout.scores = floats(kCpuKeyTile * kPanel);
  layout.sums = floats(dim_v * kPanel);
  layout.keys = floats(kCpuKeyTile * dim);
  layout.far_keys = floats(params.is_piecewise() ? kCpuKeyTile * dim : 0);
  layout.values = floats(dim_v / kStrip * strip_stride(kCpuKeyTile));
  layout.statistics = take(static_cast<size_t>(panels) * sizeof(PanelStatistics));
  layout.masks = take(static_cast<size_t>(panels) * sizeof(PanelMask));
  layout.total = at;
  return layout;
}

inline ForwardScratch carve(const ForwardLayout& layout, void* block) {
  char* base = static_cast<char*>(block);
  const auto floats = [base](size_t offset) { return reinterpret_cast<float*>(base + offset); };
  return {floats(layout.queries),
          floats(layout.far_queries),
          floats(layout.outputs),
          floats(layout.scores),
          floats(layout.sums),
          floats(layout.keys),
          floats(layout.far_keys),
          floats(layout.values),
          reinterpret_cast<PanelStatistics*>(base + layout.statistics),
          reinterpret_cast<PanelMask*>(base + layout.masks)};
}

}  // namespace flagattn::FLAGATTN_ISA
