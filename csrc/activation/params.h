// Everything the SwiGLU kernels are told, on every device. Filled by csrc/torch, read by CPU, CUDA and tests.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"
#include "arch/rows.h"

namespace flagattn {

// y = silu(gate) * up, elementwise; silu(z) = z * sigmoid(z).
struct SwigluParams {
  DType dtype = DType::kFloat32;  // of all operands
  int64_t rows = 0;
  int64_t cols = 0;
  StridedRows gate, up;
  void* y = nullptr;  // (rows, cols), contiguous
};

// dup = dy * silu(gate);  dgate = dy * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))).
struct SwigluBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  StridedRows dy, gate, up;
  void* dgate = nullptr;  // (rows, cols), contiguous
  void* dup = nullptr;
};

}  // namespace flagattn
