// New rows of caches, rotated on their way.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "attention/params.h"
#include "rotary/params.h"

namespace flagattn::sm80 {

// Rows of `from`, (batch, rows, heads, head_dim). Row i of sequence b is rotated by the angles of position n + i, where
// n is the number of rows that the cache has of b, or of position n. Positions outside the tables count as the first or
// the last.
struct AppendParams {
  const char* name = "k";  // of `from`, in errors
  HeadsView from;
  HeadsView to;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  bool to_cache = true;  // behind the cached rows; else `to` has the shape of `from`
  RotaryTable cos, sin;
  DType table_dtype = DType::kFloat32;
  int64_t half_dim = 0;  // 0 rotates nothing
  int64_t num_positions = 0;
  bool interleaved = false;
  bool own_positions = true;  // each row its own, else all rows that of the first
};

// Enqueues the copy on `stream`. `attention` tells of the caches; rows that would lie outside them are not written.
// Both operands lie on 16-byte borders.
Status run_append(const AttentionParams& attention, const AppendParams& append, Stream stream);

}  // namespace flagattn::sm80
