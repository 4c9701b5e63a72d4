// Everything the rotary kernels are told, on every device. Filled by csrc/torch, read by CPU, CUDA and tests.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"

namespace flagattn {

// Strides count elements; the last dimension is contiguous.
struct RotaryOperand {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// The angles of a position: half_dim cosines or sines. batch_stride is 0 where all sequences share one table.
struct RotaryTable {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
};

// Of each head of row (b, s), at position p: the first 2 * half_dim channels are rotated in pairs (first, second) ->
// (first * cos[p] - second * sin[p], second * cos[p] + first * sin[p]), the rest are copied. The pair of channel i is
// i + half_dim; interleaved, channels 2i and 2i + 1 form a pair.
struct RotaryParams {
  DType dtype = DType::kFloat32;        // of x and y
  DType table_dtype = DType::kFloat32;  // of cos and sin
  int64_t batch = 0;                    // packed operands are a batch of one
  int64_t seqlen = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t half_dim = 0;
  int64_t num_positions = 0;  // rows of cos and sin

  RotaryOperand x;
  RotaryOperand y;  // may be x
  RotaryTable cos, sin;

  // Position of row (b, s) at b * positions_batch_stride + s; both null: row s stands at position s.
  const int32_t* positions32 = nullptr;
  const int64_t* positions64 = nullptr;
  int64_t positions_batch_stride = 0;

  bool interleaved = false;
  bool conjugate = false;  // rotate by the negative angles

  int64_t position_of(int64_t b, int64_t s) const {
    const int64_t index = b * positions_batch_stride + s;
    return positions32 != nullptr ? positions32[index] : positions64 != nullptr ? positions64[index] : s;
  }
};

}  // namespace flagattn
