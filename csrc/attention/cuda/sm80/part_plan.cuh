// The tiles that pass by a block, and which of them need a mask.
#pragma once

#include "attention/cuda/sm80/softmax.cuh"

namespace flagattn::sm80 {

// The keys of one part that rows of a block see, in tiles, and those that all of them see.
struct PartPlan {
  int first_tile;
  int end_tile;
  int first_unmasked;
  int end_unmasked;
  ElementMask mask;

  FLAGATTN_DEVICE bool is_edge(int first_key, int num_keys) const {
    return first_key < first_unmasked || first_key + num_keys > end_unmasked;
  }
};

// Of the rows [first_row, last_row], and of the keys `within`, which begin at a tile.
template <typename Traits>
FLAGATTN_DEVICE PartPlan plan_part(const PartShape& part, int first_row, int last_row, const KeyRange& within) {
  const KeyRange visible = intersection(part.keys_of_any_row(first_row, last_row), within);
  const KeyRange unmasked = part.keys_of_every_row(first_row, last_row);
  const int first_tile = static_cast<int>(visible.begin / Traits::kBlockN);
  return {first_tile, visible.empty() ? first_tile : static_cast<int>((visible.end - 1) / Traits::kBlockN) + 1,
          static_cast<int>(unmasked.begin), static_cast<int>(unmasked.end), ElementMask::of(part)};
}

}  // namespace flagattn::sm80
