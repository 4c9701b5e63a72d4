// What the RMSNorm kernels are told, and the launches that their instances offer; norm.cu picks among them.
#pragma once

#include "arch/cuda/row_plan.h"
#include "arch/status.h"
#include "arch/stream.h"
#include "norm/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

struct NormForwardArguments {
  RmsNormParams params;
  cuda::RowPlan plan;
};

struct NormBackwardArguments {
  RmsNormBackwardParams params;
  cuda::RowPlan plan;
};

struct WeightGradientArguments {
  const float* partials;  // norm_partial_stride(cols) apart
  int64_t num_partials;
  int64_t cols;
  void* dweight;
  DType weight_dtype;
};

struct WeightGradientShared {
  float of_range[kPartialRanges][cuda::kWarp];
};

template <typename T>
Status launch_rms_norm(const NormForwardArguments& arguments, bool is_wide, Stream stream);
template <typename T>
Status launch_rms_norm_backward(const NormBackwardArguments& arguments, Stream stream);

}  // namespace flagattn::sm80
