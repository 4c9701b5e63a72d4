// Dense matrix products come from the caller, as threads do (arch/parallel.h).
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

// c = a b, or c += a b, on the calling thread; c's rows are contiguous. An element's bits depend on its row of a, its
// column of b and what it is added to alone.
using MatrixProduct = void (*)(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate);

}  // namespace flagattn
