// How the rotary kernels deal rows, heads and channels. Pure functions of shapes.
#pragma once

#include "arch/cuda/row_plan.h"
#include "rotary/params.h"

namespace flagattn::sm80 {

constexpr int kRotaryThreads = 128;
constexpr int kRotaryAngles = 2048;  // cosines, and as many sines, that a block keeps

// A block takes some rows (b, s) and all of their heads, for which it reads the rows' angles once. A piece is what a
// thread takes at a time: a vector of either half of the rotated channels, or a pair where vectors do not fit.
struct RotaryPlan {
  int rows_per_block;
  int pieces;        // of a head
  int rest;          // vectors, or elements, of a head that are copied
  int odd_chunks;    // where in a row of kept angles odd chunks begin, in floats
  int angle_stride;  // floats between two rows of kept angles
};

// Where vectors of eight take their angles from two chunks of four floats, even chunks lie together and odd ones do,
// half of the banks further, so that neither writing nor reading meets a bank twice.
constexpr int rotary_odd_chunks(int half_dim) { return (half_dim / 2 + 31) / 32 * 32 + 16; }

constexpr RotaryPlan rotary_plan(const RotaryParams& p, bool by_vector) {
  const int vector = by_vector ? static_cast<int>(16 / size_of(p.dtype)) : 1;
  const int half_dim = static_cast<int>(p.half_dim), odd_chunks = rotary_odd_chunks(half_dim);
  const int pieces = half_dim / vector, rest = static_cast<int>(p.head_dim - 2 * p.half_dim) / vector;
  const int64_t work = p.heads * (pieces > 0 ? pieces : 1);
  const int64_t wanted = 2 * kRotaryThreads / (work > 0 ? work : 1);
  const int64_t most = by_vector ? kRotaryAngles / (2 * odd_chunks) : 16;
  const int64_t rows = wanted < 1 ? 1 : wanted < most ? wanted : most;
  return {static_cast<int>(rows), pieces, rest, odd_chunks, 2 * odd_chunks};
}

// Both halves of every head are whole vectors that start at one, and the angles of a row fit.
inline bool rotary_takes_vectors(const RotaryParams& p) {
  bool takes = cuda::is_whole(p.half_dim, p.dtype) && cuda::is_whole(p.head_dim, p.dtype) &&
               2 * rotary_odd_chunks(static_cast<int>(p.half_dim)) <= kRotaryAngles;
  for (const RotaryOperand* operand : {&p.x, &p.y}) {
    takes = takes && cuda::is_aligned(operand->data) && cuda::is_whole(operand->batch_stride, p.dtype) &&
            cuda::is_whole(operand->row_stride, p.dtype) && cuda::is_whole(operand->head_stride, p.dtype);
  }
  return takes;
}

}  // namespace flagattn::sm80
