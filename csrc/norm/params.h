// Everything the RMSNorm kernels are told, on every device. Filled by csrc/torch, read by CPU, CUDA and tests.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"
#include "arch/rows.h"

namespace flagattn {

// s = x + residual (rounded to dtype; s = x without residual);  rstd = 1 / sqrt(mean(s^2) + eps);
// y = round(round?(s * rstd) * (weight + offset)), row by row.
struct RmsNormParams {
  DType dtype = DType::kFloat32;  // of x, residual, y and summed
  DType weight_dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  StridedRows x;
  StridedRows residual;          // data null: none
  const void* weight = nullptr;  // (cols), contiguous
  float eps = 0.0f;
  float offset = 0.0f;
  bool round_normalised = false;  // s * rstd is rounded to dtype before the weight multiplies it

  void* y = nullptr;       // (rows, cols), contiguous
  void* summed = nullptr;  // (rows, cols), contiguous; null without residual
  float* rstd = nullptr;   // (rows)
};

// With n = s * rstd and g = dy * (weight + offset):
// ds = rstd * (g - n * mean(g * n)) + dsummed, the gradient of x and of residual;  dweight = sum over rows of dy * n.
struct RmsNormBackwardParams {
  DType dtype = DType::kFloat32;  // of dy, dsummed, s and ds
  DType weight_dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  StridedRows dy;
  StridedRows dsummed;  // data null: no gradient flows into s from elsewhere
  StridedRows s;
  const float* rstd = nullptr;
  const void* weight = nullptr;
  float offset = 0.0f;

  void* ds = nullptr;       // (rows, cols), contiguous
  void* dweight = nullptr;  // (cols) in weight_dtype; null: not asked for
  void* scratch = nullptr;  // for dweight on CUDA: norm_backward_scratch() bytes (cuda/sm80/heuristics.h)
};

}  // namespace flagattn
