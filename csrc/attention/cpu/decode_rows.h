// The order in which a decode item walks over the rows of a key tile: by groups of kGroupKeys keys, and in a group by
// heads, which is nearly the order of memory where the heads of a key are neighbours. While one group is computed on, a
// later one is fetched, line by line exactly in the order of memory: so that hardware follows and fetches beside it.
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

// The lines that are fetched during a step.
class LinesAhead {
 public:
  LinesAhead() = default;
  // Lines [begin, end) of rows of `per_row` lines each, which start `offset` bytes behind where the table points.
  LinesAhead(const void* const* rows, int64_t offset, int64_t per_row, int64_t begin, int64_t end)
      : row_(rows + begin / per_row), offset_(offset), per_row_(per_row), left_(end - begin) {
    at_ = start_of_row() + begin % per_row * kLine;
    left_in_row_ = per_row - begin % per_row;
  }

  // The next N of them, as far as there are so many.
  template <int64_t N>
  FLAGATTN_INLINE void fetch() {
    if (left_in_row_ == 0 && left_ > 0) next_row();
    if (left_in_row_ >= N && left_ >= N) [[likely]] {
      FLAGATTN_UNROLL for (int64_t i = 0; i < N; ++i) __builtin_prefetch(at_ + i * kLine, 0, 3);
      pass(N);
    } else {
      fetch_one_by_one(N);
    }
  }
  FLAGATTN_INLINE void fetch(int64_t count) {
    if (count == kGroupKeys) {
      fetch<kGroupKeys>();
    } else {
      fetch_one_by_one(count);
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  FLAGATTN_INLINE const char* start_of_row() const { return static_cast<const char*>(*row_) + offset_; }
  FLAGATTN_INLINE void next_row() {
    ++row_;
    at_ = start_of_row();
    left_in_row_ = per_row_;
  }
  FLAGATTN_INLINE void pass(int64_t count) {
    at_ += count * kLine;
    left_in_row_ -= count;
    left_ -= count;
  }
  // Inlined too: around a call all sums in registers would be stored.
  FLAGATTN_INLINE void fetch_one_by_one(int64_t count) {
    for (; count > 0 && left_ > 0; --count) {
      if (left_in_row_ == 0) next_row();
      __builtin_prefetch(at_, 0, 3);
      pass(1);
    }
  }

  const void* const* row_ = nullptr;
  const char* at_ = nullptr;
  int64_t offset_ = 0, per_row_ = 0, left_in_row_ = 0, left_ = 0;
};

// What is fetched at `count` steps of `walk`, of which `next` follows: these heads' share of the group that comes
// kFarAhead bytes later, as far as that is known.
template <typename T>
inline LinesAhead lines_ahead(const RowWalk& walk, const RowWalk& next, int64_t step, int64_t count, int64_t heads,
                              int64_t head_dim) {
  constexpr int64_t kLine = 64, kFarAhead = 16 * 1024, kSize = static_cast<int64_t>(sizeof(T));
  const int64_t apart = heads > 1 ? walk.head_stride : head_dim, head = step % heads;
  const bool dense = apart >= head_dim && apart < 2 * head_dim;  // the heads of a row are read in one go
  const int64_t per_row = ((dense ? (heads - 1) * apart + head_dim : head_dim) * kSize + kLine - 1) / kLine;
  const int64_t lines = kGroupKeys * per_row, group_bytes = lines * kLine * (dense ? 1 : heads);
  const int64_t later = step / heads + (group_bytes < kFarAhead ? (kFarAhead + group_bytes - 1) / group_bytes : 1);
  const bool within = later < walk.end - walk.begin;
  const RowWalk& from = within ? walk : next;
  const int64_t group = within ? walk.begin + later : next.begin + later - (walk.end - walk.begin);
  if (group >= from.end) return {};
  const void* const* rows = from.rows + group * kGroupKeys;
  // Rows that follow each other are as good as one.
  const int64_t span = static_cast<const char*>(rows[kGroupKeys - 1]) - static_cast<const char*>(rows[0]);
  const bool joined = dense && span == (lines - per_row) * kLine;
  if (dense) return {rows, 0, joined ? lines : per_row, head * lines / heads, (head + count) * lines / heads};
  return {rows, head * from.head_stride * kSize, per_row, 0, lines};
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
