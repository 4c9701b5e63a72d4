// Rows that will soon be read or written, asked for a few at a time between products. They lie far apart, so that no
// hardware foresees them. First the first lines of a few rows at once: each may lie in a page of its own, and the walks
// through the page tables then run beside one another. The lines behind follow between later products, no more at once
// than leave some of a core's outstanding misses to the products.
#pragma once

#include <cstdint>

#include "attention/cpu/micro_kernel.h"
#include "attention/heuristics.h"

namespace flagattn::FLAGATTN_ISA {

class RowList {
 public:
  void clear() { count_ = begun_ = next_ = owed_ = 0; }

  void add(const void* row, int64_t bytes) { rows_[count_++] = {static_cast<const char*>(row), bytes}; }

  // Shares what was added among so many calls of `step`.
  void share(int64_t steps) { per_step_ = (count_ + steps - 1) / steps; }
  void step() {
    owed_ += per_step_;
    if (owed_ < kTogether) return go_on(kLines);
    go_on(kAll);
    begin(owed_);
    owed_ = 0;
  }
  void rest() {
    go_on(kAll);
    while (begun_ < count_) {
      begin(kTogether);
      go_on(kAll);
    }
  }

 private:
  struct Row {
    const char* at;  // the line asked for last, where the row has begun
    int64_t bytes;   // from there on
  };
  // The first line of the next n rows.
  void begin(int64_t n) {
    const int64_t end = begun_ + n < count_ ? begun_ + n : count_;
    for (; begun_ < end; ++begun_) fetch_line(rows_[begun_].at);
  }
  // At most n lines of the rows that have begun.
  void go_on(int64_t n) {
    for (; next_ < begun_; ++next_) {
      Row& row = rows_[next_];
      for (; row.bytes > kLine; --n) {
        if (n == 0) return;
        row.at += kLine;
        row.bytes -= kLine;
        fetch_line(row.at);
      }
    }
  }
  static void fetch_line(const char* at) { __builtin_prefetch(at, 0, /*into L2*/ 2); }

  // Of two panels queries, far queries and outputs, and a tile's keys, far keys and values.
  static constexpr int64_t kMost = 6 * kPanel + 3 * kCpuKeyTile;
  static constexpr int64_t kTogether = 6, kLines = 12, kLine = 64, kAll = 1 << 30;
  int64_t count_ = 0, begun_ = 0, next_ = 0, per_step_ = 0, owed_ = 0;
  Row rows_[kMost];
};

}  // namespace flagattn::FLAGATTN_ISA
