// Everything the cross-entropy kernels are told, on every device. Filled by csrc/torch, read by CPU, CUDA and tests.
//
// Row i has logits x_i and the target t_i. With z = softcap * tanh(x / softcap) (z = x where softcap is 0) and
// lse = log(sum over j of e^z_j):
//   loss = (1 - label_smoothing) (lse - z_t) + label_smoothing (lse - mean of z) + z_loss lse^2,
// times the row's weight. Rows with t_i = ignore_index or weight 0 are left out: loss 0, lse 0, gradient 0, and their
// logits are not looked at. "mean" divides the sum by the sum of the weights of the rows that are left; with none it
// is 0.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"
#include "arch/rows.h"

namespace flagattn {

enum class Reduction : int32_t { kNone, kMean, kSum };

struct LossOptions {
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::kMean;
  float softcap = 0.0f;  // 0: none
  float z_loss = 0.0f;
  float label_smoothing = 0.0f;
};

// What every op knows about its rows.
struct LossRows {
  int64_t rows = 0;
  int64_t classes = 0;
  const int64_t* targets = nullptr;  // (rows)
  const float* weights = nullptr;    // (rows); null: all 1
  LossOptions options;
};

// What the forward says about each row. The two parts of lse are kept, since their sum has lost bits that a gradient
// of large logits needs.
struct LossResults {
  float* loss = nullptr;  // (rows) without reduction, else (1)
  float* lse = nullptr;   // (rows), = maximum + log(sum)
  float* maximum = nullptr;
  float* sum = nullptr;  // of e^(z - maximum)
};

// Gradients that arrive; null: none.
struct LossUpstream {
  const float* dloss = nullptr;  // (rows) without reduction, else (1)
  const float* dlse = nullptr;   // (rows)
  const float* maximum = nullptr;
  const float* sum = nullptr;
};

struct CrossEntropyParams {
  LossRows in;
  DType dtype = DType::kFloat32;
  StridedRows logits;  // (rows, classes)
  LossResults out;
};

struct CrossEntropyBackwardParams {
  LossRows in;
  DType dtype = DType::kFloat32;
  StridedRows logits;
  LossUpstream upstream;
  StridedRows dlogits;  // in the logits' dtype; may be the logits themselves
};

// x = hidden weight^T
struct LinearOperands {
  LossRows in;
  int64_t features = 0;
  DType hidden_dtype = DType::kFloat32;
  DType weight_dtype = DType::kFloat32;
  StridedRows hidden;            // (rows, features)
  const void* weight = nullptr;  // (classes, features)
  int64_t weight_stride = 0;     // between rows, in elements
};

// The gradients of the reduced loss are taken on the way where they are asked for, which spares a second product for
// the logits.
struct LinearCrossEntropyParams {
  LinearOperands operands;
  LossResults out;
  float* dhidden = nullptr;  // (rows, features), contiguous; null: not asked for
  float* dweight = nullptr;  // (classes, features), contiguous; only where weight is fp32
};

struct LinearCrossEntropyBackwardParams {
  LinearOperands operands;
  LossUpstream upstream;
  void* dhidden = nullptr;  // as hidden and weight in dtype, contiguous; null: not asked for
  void* dweight = nullptr;
};

}  // namespace flagattn
