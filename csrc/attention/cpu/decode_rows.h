// The order in which a decode item walks over the rows of a key tile: by groups of kGroupKeys keys, and in a group by
// heads, which is nearly the order of memory where the heads of a key are neighbours. Rows are fetched shortly before
// they are needed, in the order in which they are.
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

// Rows of one head: element `offset` on of the rows in a table.
struct RowGroup {
  const void* const* rows;
  int64_t offset;

  template <typename T>
  const T* const* typed() const {
    return reinterpret_cast<const T* const*>(rows);
  }
  RowGroup from(int64_t key) const { return {rows + key, offset}; }
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
  // `later` is walked over afterwards. Where nothing follows, what is in the caches already.
  RowGroup from_or(int64_t step, int64_t heads, const RowWalk& later) const {
    if (step < steps(heads)) return at(step, heads);
    return later.begin < later.end ? later.at(0, heads) : at(0, heads);
  }
};

// What is fetched while rows are read: of each of them the line that lies kAhead bytes on, and behind its end lines of
// a row of the group that follows. So few lines are on their way that none is driven out of L1 before it is read.
template <typename T>
class RowsAhead {
 public:
  RowsAhead(const RowGroup& now, const RowGroup& next, int64_t num_elements)
      : now_(now), next_(next), row_bytes_(num_elements * kSize) {}

  struct Lines {
    const char* const* rows;
    int64_t offset;

    FLAGATTN_INLINE void fetch(int64_t row) const { __builtin_prefetch(rows[row] + offset, 0, 3); }
  };
  // While element `d` is read.
  FLAGATTN_INLINE Lines lines(int64_t d) const {
    const int64_t byte = d * kSize + (row_bytes_ < kAhead ? row_bytes_ : kAhead);
    const bool within = byte < row_bytes_;
    const RowGroup& group = within ? now_ : next_;
    return {group.template typed<char>(), group.offset * kSize + byte - (within ? 0 : row_bytes_)};
  }

 private:
  static constexpr int64_t kAhead = 256, kSize = static_cast<int64_t>(sizeof(T));

  const RowGroup now_, next_;
  const int64_t row_bytes_;
};

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
