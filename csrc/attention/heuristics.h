// Tile sizes of the attention kernels: pure functions, shapes in, config out. No result depends on the choice.
#pragma once

#include <cstdint>

#include "attention/params.h"

namespace flagattn {

// Keys of a tile, and of a chunk. Both are fixed and start at multiples of themselves from key 0. A row's sums are
// grouped by tiles, and its softmax starts anew in every chunk, whose results are merged in order: a row's bits depend
// on nothing but its own keys, whoever computes which chunk.
inline constexpr int64_t kCpuKeyTile = 128;
inline constexpr int64_t kCpuKeyChunk = 1024;
static_assert(kCpuKeyChunk % kCpuKeyTile == 0);

struct CpuForwardConfig {
  int64_t columns_per_item;  // query rows, those of all heads of a group counted; a multiple of `panel`
  int64_t items_per_group;   // work items per (batch, key/value head)
  int64_t key_tiles;         // packed tiles that a worker keeps: all of a sequence, or else whole chunks
  int64_t items_at_once;     // most items of a group that a worker leads past the tiles it keeps before it packs others
};

// `panel` is the number of query rows the ISA level holds in its lanes at once.
constexpr CpuForwardConfig cpu_forward_config(const AttentionParams& params, int64_t panel, int64_t num_threads) {
  // Transposed queries and outputs of an item stay in L2 beside the key and value tile: half a MiB is the smallest L2
  // around. Packed tiles may lie in L3: a tile is read once per item.
  constexpr int64_t kItemBytes = 256 * 1024, kTileBytes = 8 << 20;
  // Items a thread should get, so that the last ones even out.
  constexpr int64_t kItemsPerThread = 8;
  // Where the tiles of a sequence are too many to be kept, so many items share the packing.
  constexpr int64_t kItemsAtOnce = 4;
  constexpr int64_t kFloat = static_cast<int64_t>(sizeof(float));

  const int64_t groups = params.batch * params.heads_k;
  if (groups == 0 || params.seqlen_q == 0) return {panel, 0, 1, 1};
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  const int64_t panels = (columns + panel - 1) / panel;
  const int64_t operand = params.is_piecewise() ? 2 * params.head_dim : params.head_dim;
  const int64_t panel_bytes = panel * (operand + params.head_dim_v) * kFloat;
  const int64_t most_panels = kItemBytes / panel_bytes > 1 ? kItemBytes / panel_bytes : 1;

  int64_t items = (panels + most_panels - 1) / most_panels;
  const int64_t wanted = (kItemsPerThread * num_threads + groups - 1) / groups;
  if (items < wanted) items = wanted < panels ? wanted : panels;
  const int64_t panels_per_item = (panels + items - 1) / items;
  items = (panels + panels_per_item - 1) / panels_per_item;

  constexpr int64_t kTilesPerChunk = kCpuKeyChunk / kCpuKeyTile;
  const int64_t tiles = (params.seqlen_k + kCpuKeyTile - 1) / kCpuKeyTile;
  const int64_t tile_bytes = kCpuKeyTile * (operand + params.head_dim_v) * kFloat;
  int64_t most_tiles = kTileBytes / tile_bytes / kTilesPerChunk * kTilesPerChunk;
  if (most_tiles < kTilesPerChunk) most_tiles = kTilesPerChunk;
  const bool all = tiles <= most_tiles;
  return {panels_per_item * panel, items, all ? (tiles > 1 ? tiles : 1) : most_tiles,
          all                    ? 1
          : items < kItemsAtOnce ? items
                                 : kItemsAtOnce};
}

}  // namespace flagattn
