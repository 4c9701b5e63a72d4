// Rows that will soon be read or written, asked for a few at a time between products. They lie far apart, so that no
// hardware foresees them, and many at once would find all of a core's outstanding misses taken.
#pragma once

#include <cstdint>

#include "attention/cpu/micro_kernel.h"
#include "attention/heuristics.h"

namespace flagattn::FLAGATTN_ISA {

class RowList {
 public:
  void clear() { count_ = next_ = 0; }

  void add(const void* row, int64_t bytes) { rows_[count_++] = {static_cast<const char*>(row), bytes}; }

  // Shares what was added among so many calls of `step`.
  void share(int64_t steps) { per_step_ = (count_ + steps - 1) / steps; }
  void step() {
    for (int64_t i = 0; i < per_step_ && next_ < count_; ++i, ++next_) fetch(rows_[next_]);
  }
  void rest() {
    for (; next_ < count_; ++next_) fetch(rows_[next_]);
  }

 private:
  struct Row {
    const char* at;
    int64_t bytes;
  };
  static void fetch(const Row& row) {
    for (int64_t i = 0; i < row.bytes; i += 64) __builtin_prefetch(row.at + i, 0, /*into L2*/ 2);
  }

  // Of two panels queries, far queries and outputs, and a tile's keys, far keys and values.
  static constexpr int64_t kMost = 6 * kPanel + 3 * kCpuKeyTile;
  int64_t count_ = 0, next_ = 0, per_step_ = 0;
  Row rows_[kMost];
};

}  // namespace flagattn::FLAGATTN_ISA
