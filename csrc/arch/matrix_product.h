// Dense matrix products come from the caller (aten's, of whatever library it is built with), as threads do
// (arch/parallel.h).
#pragma once

#include <cstdint>

namespace flagattn {

// A view of fp32 elements; one of the strides, in elements, is 1.
struct Matrix {
  float* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride = 1;

  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
};

// c = a b, or c += a b. Called inside a ParallelFor it runs on the calling thread, so its bits depend on the operands
// alone.
using MatrixProduct = void (*)(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate);

}  // namespace flagattn
