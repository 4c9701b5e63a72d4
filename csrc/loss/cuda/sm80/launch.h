// What the cross-entropy kernels are told, and the launches that their instances offer; loss.cu picks among them.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "loss/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

struct CrossEntropyArguments {
  CrossEntropyParams params;
  cuda::RowPlan plan;
  double* losses;  // of rows, weighted; null without reduction
};

struct CrossEntropyBackwardArguments {
  CrossEntropyBackwardParams params;
  cuda::RowPlan plan;
  const double* divisor;  // null: 1
};

// Adds up the losses of all rows, and the weights of those that are kept.
struct LossTotalArguments {
  LossRows in;
  const double* losses;  // null: the weights alone
  float* loss;           // the sum of the losses, divided by that of the weights for a mean; null without losses
  double* divisor;       // the sum of the weights, 1 if there are none; null: not asked for
};

struct LossTotalShared {
  double sums[3][kTotalThreads];  // losses, weights, number of rows that are kept
};

template <typename T>
Status launch_cross_entropy(const CrossEntropyArguments& arguments, Stream stream);
template <typename T>
Status launch_cross_entropy_backward(const CrossEntropyBackwardArguments& arguments, Stream stream);

}  // namespace flagattn::sm80
