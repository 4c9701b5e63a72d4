// How the cross-entropy kernels deal rows. Pure functions of shapes.
#pragma once

#include "arch/cuda/row_plan.h"
#include "loss/params.h"

namespace flagattn::sm80 {

inline constexpr int kLossUnroll = 4;      // vectors of a row that a thread has under way
inline constexpr int kTotalThreads = 512;  // of the one block that adds up losses and weights

// A team takes one row; its threads take neighbouring vectors. Rows start anywhere: a vector more where they do not
// start on a border of 16 bytes.
constexpr cuda::RowPlan loss_plan(int64_t classes, DType dtype) {
  return cuda::row_plan(cuda::lanes_for(cuda::vectors_of(classes, dtype) + 1, kLossUnroll), 1);
}

// Doubles of scratch: the weighted loss of each row for a reduced forward, the divisor of the mean for a backward.
constexpr int64_t cross_entropy_scratch(const LossRows& in) {
  return in.options.reduction == Reduction::kNone ? 0 : in.rows;
}
constexpr int64_t cross_entropy_backward_scratch(const LossRows& in) {
  return in.options.reduction == Reduction::kMean ? 1 : 0;
}

}  // namespace flagattn::sm80
