// Everything the linear kernels are told, on every device. Filled by csrc/torch, read by CPU, CUDA and tests.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"

namespace flagattn {

// A matrix at any strides, in elements.
struct MatrixView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

// y[i, j] = sum over k of x[i, k] weight[j, k], plus bias[j]; y is contiguous.
struct LinearParams {
  DType dtype = DType::kFloat32;  // of everything
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;
  MatrixView x;
  MatrixView weight;
  const void* bias = nullptr;  // null: none
  void* y = nullptr;
};

}  // namespace flagattn
