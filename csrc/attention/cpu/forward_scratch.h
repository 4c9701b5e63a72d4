// Where a worker of the forward keeps its columns and key tiles: laid out once per call, carved from the thread's
// scratch block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/key_tiles.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/softmax.h"
#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

// Per panel of the items at work: queries (q and, piecewise, q2) and outputs transposed, statistics and masks. Per
// panel of one item: what the chunk at hand adds. Packed key tiles. Scores of one panel against one tile, and that
// tile's part of the outputs where it is summed run by run. Where masks or biases join the scores, or dropout the
// weights: how much of the tile at hand the item's panels see, and one panel's terms and factors. Queries, weights and
// packed tiles are what the products make of so many floats.
struct ForwardScratch {
  float *queries, *far_queries, *outputs, *chunk_outputs, *scores, *weights, *sums, *terms, *dropout;
  PanelStatistics *statistics, *chunk_statistics;
  PanelMask* masks;
  TileSeen* seen;
  TileSlots keys, far_keys, values;
};

// Lays the scratch out from `base` on; null only measures. Returns the bytes it takes.
template <typename Products>
size_t carve(const AttentionParams& params, const CpuForwardConfig& config, char* base, ForwardScratch& scratch) {
  size_t at = 0;
  const auto take = [&]<typename T>(T*& start, int64_t count) {
    start = reinterpret_cast<T*>(base + at);
    at += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  };
  const auto take_tiles = [&](TileSlots& tiles, int64_t slots, int64_t tile_floats) {
    tiles.slots = slots;
    tiles.tile_floats = tile_floats;
    take(tiles.owners, slots);
    take(tiles.data, slots * tile_floats);
  };
  const int64_t dim_v = padded_dim(params.head_dim_v);
  const int64_t panel_queries = Products::query_floats(params.head_dim);
  const int64_t tile_keys = Products::key_floats(params.head_dim);
  const int64_t item_panels = config.columns_per_item / kPanel, panels = config.items_at_once * item_panels;
  const int64_t chunk_panels = params.seqlen_k > kCpuKeyChunk ? item_panels : 0;
  take(scratch.queries, panels * panel_queries);
  take(scratch.far_queries, params.is_piecewise() ? panels * panel_queries : 0);
  take(scratch.outputs, panels * kPanel * dim_v);
  take(scratch.chunk_outputs, chunk_panels * kPanel * dim_v);
  take(scratch.scores, kCpuKeyTile * kPanel);
  take(scratch.weights, Products::kWeightFloats);
  take(scratch.sums, dim_v * kPanel);
  const bool terms = ScoreTerms::exist(params);
  take(scratch.terms, terms ? kCpuKeyTile * kPanel : 0);
  take(scratch.seen, terms ? item_panels : 0);
  take(scratch.dropout, params.dropout.rng_state != nullptr ? kCpuKeyTile * kPanel : 0);
  take(scratch.statistics, panels);
  take(scratch.chunk_statistics, chunk_panels);
  take(scratch.masks, panels);
  take_tiles(scratch.keys, config.key_tiles, tile_keys);
  take_tiles(scratch.far_keys, params.is_piecewise() ? config.key_tiles : 0, tile_keys);
  take_tiles(scratch.values, config.key_tiles, Products::value_floats(params.head_dim_v));
  return at;
}

}  // namespace flagattn::FLAGATTN_ISA
