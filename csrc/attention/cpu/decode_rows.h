// The order in which a decode item walks over the rows of a key tile: by groups of kGroupKeys keys, and in a group by
// heads, which is nearly the order of memory where the heads of a key are neighbours. While one group of one head is
// computed on, one that comes a little later is fetched: no hardware prefetcher follows rows that lie a token apart.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/pack.h"
#include "attention/heuristics.h"
#include "attention/mask.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kFourKeys = F32::kLanes / 4;
inline constexpr int64_t kGroupKeys = 8 * kFourKeys;
static_assert(kCpuKeyTile % kGroupKeys == 0);

template <typename T>
FLAGATTN_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 3);
}

// Rows of one head: element `offset` on of the rows in a table.
struct RowGroup {
  const void* const* rows;
  int64_t offset;

  template <typename T>
  const T* const* typed() const {
    return reinterpret_cast<const T* const*>(rows);
  }
};

// What is walked over: the groups [begin, end) of a tile's table of rows, for all heads of an item. The heads of a row
// lie head_stride elements apart.
struct RowWalk {
  const void** rows = nullptr;
  int64_t head_stride = 0;
  int64_t begin = 0, end = 0;

  int64_t steps(int64_t heads) const { return (end - begin) * heads; }
  RowGroup at(int64_t step, int64_t heads) const {
    return {rows + (begin + step / heads) * kGroupKeys, step % heads * head_stride};
  }
};

// What is fetched at a step of `walk`, of which `next` follows: `distance` steps ahead, as far as that is known.
inline RowGroup ahead_of(const RowWalk& walk, const RowWalk& next, int64_t step, int64_t heads, int64_t distance) {
  const int64_t steps = walk.steps(heads), later = step + distance;
  if (later < steps) return walk.at(later, heads);
  const int64_t behind = next.steps(heads) - 1;
  if (behind < 0) return walk.at(step, heads);
  return next.at(later - steps < behind ? later - steps : behind, heads);
}

// The rows of keys `seen` of the tile from `first` on, at head `head_k`; entries beside them repeat the nearest one.
template <typename T>
inline RowWalk walk_over(const Sequence& sequence, int64_t head_k, const HeadsView& view, int64_t first,
                         const KeyRange& seen, const void** rows) {
  const T* head = static_cast<const T*>(view.data) + head_k * view.head_stride;
  const void** to = rows + seen.begin;
  for_each_stretch(sequence, first + seen.begin, seen.end - seen.begin,
                   [&](int64_t done, int64_t count, const KeyPlace& place) {
                     const T* row = head + place.offset(view);
                     for (int64_t i = 0; i < count; ++i, row += view.row_stride) to[done + i] = row;
                   });
  for (int64_t i = 0; i < seen.begin; ++i) rows[i] = rows[seen.begin];
  for (int64_t i = seen.end; i < kCpuKeyTile; ++i) rows[i] = rows[seen.end - 1];
  return {rows, view.head_stride, seen.begin / kGroupKeys, (seen.end + kGroupKeys - 1) / kGroupKeys};
}

}  // namespace flagattn::FLAGATTN_ISA
