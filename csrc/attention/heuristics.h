// Tile sizes of the attention kernels: pure functions, shapes in, config out. No result depends on the choice.
#pragma once

#include <cstdint>

#include "attention/params.h"

namespace flagattn {

// Keys of a tile. Fixed, and tiles start at multiples of it from key 0: a row's sums are grouped by tiles, so its bits
// depend on nothing but its own keys.
inline constexpr int64_t kCpuKeyTile = 128;

struct CpuForwardConfig {
  int64_t columns_per_item;  // query rows, those of all heads of a group counted; a multiple of `panel`
  int64_t items_per_group;   // work items per (batch, key/value head)
};

// `panel` is the number of query rows the ISA level holds in its lanes at once.
constexpr CpuForwardConfig cpu_forward_config(const AttentionParams& params, int64_t panel, int64_t num_threads) {
  // Transposed queries and outputs of an item stay in L2 beside the key and value tile: half a MiB is the smallest L2
  // around. More columns share the packing of a tile, a percent or two of the time at 192.
  constexpr int64_t kBytes = 256 * 1024;
  // Items a thread should get, so that the last ones even out.
  constexpr int64_t kItemsPerThread = 4;

  const int64_t groups = params.batch * params.heads_k;
  if (groups == 0 || params.seqlen_q == 0) return {panel, 0};
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  const int64_t panels = (columns + panel - 1) / panel;
  const int64_t queries = params.is_piecewise() ? 2 * params.head_dim : params.head_dim;
  const int64_t panel_bytes = panel * (queries + params.head_dim_v) * static_cast<int64_t>(sizeof(float));
  const int64_t most_panels = kBytes / panel_bytes > 1 ? kBytes / panel_bytes : 1;

  int64_t items = (panels + most_panels - 1) / most_panels;
  const int64_t wanted = (kItemsPerThread * num_threads + groups - 1) / groups;
  if (items < wanted) items = wanted < panels ? wanted : panels;
  const int64_t panels_per_item = (panels + items - 1) / items;
  return {panels_per_item * panel, (panels + panels_per_item - 1) / panels_per_item};
}

}  // namespace flagattn
