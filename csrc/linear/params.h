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

// Maps of the same few rows, whose results lie side by side: y[i, first + j] = sum over k of x[i, k] weight[j, k], plus
// bias[j]. Rows of x and of the weights are contiguous.
struct FewRowsParams {
  static constexpr int64_t kMostMaps = 4;

  struct Map {
    const void* weight = nullptr;
    int64_t stride = 0;          // of the weight's rows, in elements
    const void* bias = nullptr;  // null: none
    int64_t first = 0;           // of y's columns
    int64_t cols = 0;
  };

  DType dtype = DType::kFloat32;  // of everything
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t num_maps = 0;
  Map maps[kMostMaps];
  const void* x = nullptr;
  int64_t x_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
};

}  // namespace flagattn
