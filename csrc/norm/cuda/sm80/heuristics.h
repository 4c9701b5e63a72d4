// What the RMSNorm kernels do with a problem. Pure functions of shapes: no choice depends on the GPU.
#pragma once

#include "arch/cuda/row_plan.h"
#include "norm/params.h"

namespace flagattn::sm80 {

// Forward. A row stays in registers, and so does the weight, which serves the up to 16 rows of a team. Rows of more
// than 32 KB leave no registers for the weight, which is read from L2; of rows of more than 96 KB the rest is read
// twice.
struct NormForwardPlan {
  bool is_wide;
  cuda::RowPlan rows;
};

constexpr int kForwardVectors = 4;  // of a row in a thread's registers
constexpr int kForwardVectorsWide = 12;

constexpr NormForwardPlan norm_forward_plan(int64_t rows, int64_t cols, DType dtype) {
  const int64_t vectors = cuda::vectors_of(cols, dtype);
  if (vectors > kForwardVectors * cuda::kMostRowThreads) return {true, {cuda::kMostRowThreads, 1, 1}};
  const int lanes = cuda::lanes_for(vectors, kForwardVectors);
  return {false, cuda::row_plan(lanes, cuda::rows_per_team(rows, lanes, 1 << 17, 16))};
}

// Backward. A thread keeps 16 columns: of dy and s, of the weight, and of the sum of dweight over the rows of its team,
// up to 64. That sum is one row of the partial sums that a second kernel adds. Of rows of more than 8192 columns the
// rest is read twice.
constexpr int kBackwardColumns = 16;

constexpr cuda::RowPlan norm_backward_plan(int64_t rows, int64_t cols, DType dtype) {
  const int vector = static_cast<int>(16 / size_of(dtype));
  const int lanes = cuda::lanes_for(cuda::vectors_of(cols, dtype), kBackwardColumns / vector);
  return cuda::row_plan(lanes, cuda::rows_per_team(rows, lanes, 1 << 16, 64));
}

// Rows that do not consist of whole vectors of 16 bytes, or do not start at one, are read element by element, twice.
constexpr int kElementsPerThread = 8;

constexpr cuda::RowPlan norm_element_plan(int64_t rows, int64_t cols, bool sums_rows) {
  const int lanes = cuda::lanes_for(cols, kElementsPerThread);
  return cuda::row_plan(lanes, cuda::rows_per_team(rows, lanes, 1 << 16, sums_rows ? 64 : 1));
}

// Floats between two rows of partial sums.
constexpr int64_t norm_partial_stride(int64_t cols) { return (cols + 7) / 8 * 8; }

// Bytes that RmsNormBackwardParams::scratch points to.
constexpr int64_t norm_backward_scratch(int64_t rows, int64_t cols, DType dtype) {
  const int64_t by_vector = norm_backward_plan(rows, cols, dtype).teams_for(rows);
  const int64_t by_element = norm_element_plan(rows, cols, true).teams_for(rows);
  const int64_t partials = by_vector > by_element ? by_vector : by_element;
  return partials * norm_partial_stride(cols) * static_cast<int64_t>(sizeof(float));
}

// Partial sums are added by 32 warps, each a range of its own for 32 columns.
constexpr int kPartialRanges = 32;

}  // namespace flagattn::sm80
