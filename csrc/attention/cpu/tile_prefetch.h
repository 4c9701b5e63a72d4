// Asks for the keys and values of the next tile while this one is computed. Their rows lie far apart, so that the
// hardware follows them poorly; a few lines per strip of scores arrive in L2 long before they are packed.
#pragma once

#include <cstdint>

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {

class TilePrefetch {
 public:
  void clear() { num_streams_ = 0, current_ = 0; }

  // `rows` rows of `row_bytes` bytes, `stride_bytes` apart.
  void add(const void* first, int64_t stride_bytes, int64_t row_bytes, int64_t rows) {
    streams_[num_streams_++] = {static_cast<const char*>(first), stride_bytes, row_bytes, rows};
  }

  // Spreads the rows over this many calls of step().
  void spread(int64_t steps) {
    int64_t rows = 0;
    for (int i = 0; i < num_streams_; ++i) rows += streams_[i].rows;
    rows_per_step_ = (rows + steps - 1) / steps;
  }

  FLAGATTN_INLINE void step() {
    for (int64_t i = 0; i < rows_per_step_ && current_ < num_streams_; ++i) {
      Stream& stream = streams_[current_];
      for (int64_t byte = 0; byte < stream.row_bytes; byte += 64) __builtin_prefetch(stream.next + byte, 0, 2);
      stream.next += stream.stride_bytes;
      if (--stream.rows == 0) ++current_;
    }
  }

 private:
  struct Stream {
    const char* next;
    int64_t stride_bytes, row_bytes, rows;
  };
  Stream streams_[3];
  int num_streams_ = 0, current_ = 0;
  int64_t rows_per_step_ = 0;
};

}  // namespace flagattn::FLAGATTN_ISA
