// Rows that will soon be read or written, asked for a few at a time between products. They lie far apart, so that no
// hardware foresees them, and many at once would find all of a core's outstanding misses taken. A few at once they
// should be: each may lie in a page of its own, and the walks through the page tables then run beside one another.
#pragma once

#include <cstdint>

#include "attention/cpu/micro_kernel.h"
#include "attention/heuristics.h"

namespace flagattn::FLAGATTN_ISA {

class RowList {
 public:
  void clear() { count_ = next_ = owed_ = 0; }

  void add(const void* row, int64_t bytes) { rows_[count_++] = {static_cast<const char*>(row), bytes}; }

  // Shares what was added among so many calls of `step`.
  void share(int64_t steps) { per_step_ = (count_ + steps - 1) / steps; }
  void step() {
    owed_ += per_step_;
    if (owed_ < kTogether) return;
    fetch(owed_);
    owed_ = 0;
  }
  void rest() {
    while (next_ < count_) fetch(kTogether);
  }

 private:
  struct Row {
    const char* at;
    int64_t bytes;
  };
  // The next n rows: the first line of every one, then the lines behind.
  void fetch(int64_t n) {
    const int64_t end = next_ + n < count_ ? next_ + n : count_;
    for (int64_t row = next_; row < end; ++row) fetch_line(rows_[row].at);
    for (; next_ < end; ++next_) {
      for (int64_t i = 64; i < rows_[next_].bytes; i += 64) fetch_line(rows_[next_].at + i);
    }
  }
  static void fetch_line(const char* at) { __builtin_prefetch(at, 0, /*into L2*/ 2); }

  // Of two panels queries, far queries and outputs, and a tile's keys, far keys and values.
  static constexpr int64_t kMost = 6 * kPanel + 3 * kCpuKeyTile;
  static constexpr int64_t kTogether = 6;
  int64_t count_ = 0, next_ = 0, per_step_ = 0, owed_ = 0;
  Row rows_[kMost];
};

}  // namespace flagattn::FLAGATTN_ISA
