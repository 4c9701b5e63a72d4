// Checks what the RMSNorm kernels can do, plans, and picks the kernel.
#include "norm/cuda/sm80/norm.h"

#include <string>

#include "arch/ptx/launch.cuh"
#include "norm/cuda/sm80/element_kernels.cuh"
#include "norm/cuda/sm80/launch.h"
#include "norm/cuda/sm80/weight_gradient_kernel.cuh"

namespace flagattn::sm80 {

template <>
Status launch_rms_norm<float>(const NormForwardArguments&, bool, Stream);
template <>
Status launch_rms_norm<BFloat16>(const NormForwardArguments&, bool, Stream);
template <>
Status launch_rms_norm<Float16>(const NormForwardArguments&, bool, Stream);
template <>
Status launch_rms_norm_backward<float>(const NormBackwardArguments&, Stream);
template <>
Status launch_rms_norm_backward<BFloat16>(const NormBackwardArguments&, Stream);
template <>
Status launch_rms_norm_backward<Float16>(const NormBackwardArguments&, Stream);

namespace {

Status check_columns(const char* name, int64_t cols) {
  if (cols <= cuda::kMostColumns) return Status::success();
  return Status::error(std::string(name) + " has " + std::to_string(cols) +
                       " columns; rms_norm on CUDA supports at most 2^30");
}

// Results are contiguous: with whole vectors in a row, every row starts where the first one does.
bool takes_vectors(const RmsNormParams& p) {
  return cuda::takes_vectors(p.x, p.cols, p.dtype) && cuda::is_aligned(p.y) && cuda::is_aligned(p.weight) &&
         (p.residual.data == nullptr ||
          (cuda::takes_vectors(p.residual, p.cols, p.dtype) && cuda::is_aligned(p.summed)));
}

bool takes_vectors(const RmsNormBackwardParams& p) {
  return cuda::takes_vectors(p.dy, p.cols, p.dtype) && cuda::takes_vectors(p.s, p.cols, p.dtype) &&
         cuda::is_aligned(p.ds) && cuda::is_aligned(p.weight) &&
         (p.dsummed.data == nullptr || cuda::takes_vectors(p.dsummed, p.cols, p.dtype));
}

}  // namespace

Status run_rms_norm(const RmsNormParams& p, Stream stream) {
  if (Status status = check_columns("x", p.cols); !status.ok()) return status;
  if (!takes_vectors(p)) {
    const NormForwardArguments arguments{p, norm_element_plan(p.rows, p.cols, false)};
    return ptx::launch<NormShared>(rms_norm_element_kernel, arguments.plan.blocks(p.rows), arguments.plan.threads(),
                                   stream, arguments);
  }
  const NormForwardPlan plan = norm_forward_plan(p.rows, p.cols, p.dtype);
  return dispatch(p.dtype, [&]<typename T>(T) { return launch_rms_norm<T>({p, plan.rows}, plan.is_wide, stream); });
}

Status run_rms_norm_backward(const RmsNormBackwardParams& p, Stream stream) {
  if (Status status = check_columns("s", p.cols); !status.ok()) return status;
  const bool by_vector = takes_vectors(p);
  const NormBackwardArguments arguments{p, by_vector ? norm_backward_plan(p.rows, p.cols, p.dtype)
                                                     : norm_element_plan(p.rows, p.cols, p.dweight != nullptr)};
  const Status status =
      by_vector ? dispatch(p.dtype, [&]<typename T>(T) { return launch_rms_norm_backward<T>(arguments, stream); })
                : ptx::launch<NormShared>(rms_norm_backward_element_kernel, arguments.plan.blocks(p.rows),
                                          arguments.plan.threads(), stream, arguments);
  if (!status.ok() || p.dweight == nullptr) return status;
  return ptx::launch<WeightGradientShared>(
      weight_gradient_kernel, (p.cols + ptx::kWarpSize - 1) / ptx::kWarpSize, kPartialRanges * ptx::kWarpSize, stream,
      WeightGradientArguments{static_cast<const float*>(p.scratch), arguments.plan.teams_for(p.rows), p.cols, p.dweight,
                              p.weight_dtype});
}

}  // namespace flagattn::sm80
