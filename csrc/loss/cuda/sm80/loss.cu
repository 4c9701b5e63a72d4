// Checks what the cross-entropy kernels can do, plans, and picks the kernel.
#include "loss/cuda/sm80/loss.h"

#include <string>

#include "arch/ptx/launch.cuh"
#include "loss/cuda/sm80/total_kernel.cuh"

namespace flagattn::sm80 {

template <>
Status launch_cross_entropy<float>(const CrossEntropyArguments&, Stream);
template <>
Status launch_cross_entropy<BFloat16>(const CrossEntropyArguments&, Stream);
template <>
Status launch_cross_entropy<Float16>(const CrossEntropyArguments&, Stream);
template <>
Status launch_cross_entropy_backward<float>(const CrossEntropyBackwardArguments&, Stream);
template <>
Status launch_cross_entropy_backward<BFloat16>(const CrossEntropyBackwardArguments&, Stream);
template <>
Status launch_cross_entropy_backward<Float16>(const CrossEntropyBackwardArguments&, Stream);

namespace {

Status check_classes(int64_t classes) {
  if (classes <= cuda::kMostColumns) return Status::success();
  return Status::error("logits has " + std::to_string(classes) +
                       " classes; cross_entropy on CUDA supports at most 2^30");
}

Status add_up(const LossTotalArguments& arguments, Stream stream) {
  return ptx::launch<LossTotalShared>(loss_total_kernel, 1, kTotalThreads, stream, arguments);
}

}  // namespace

Status run_cross_entropy(const CrossEntropyParams& p, double* scratch, Stream stream) {
  if (Status status = check_classes(p.in.classes); !status.ok()) return status;
  const bool reduces = p.in.options.reduction != Reduction::kNone;
  const CrossEntropyArguments arguments{p, loss_plan(p.in.classes, p.dtype), reduces ? scratch : nullptr};
  const Status status = dispatch(p.dtype, [&]<typename T>(T) { return launch_cross_entropy<T>(arguments, stream); });
  if (!status.ok() || !reduces) return status;
  return add_up({p.in, scratch, p.out.loss, nullptr}, stream);
}

Status run_cross_entropy_backward(const CrossEntropyBackwardParams& p, double* scratch, Stream stream) {
  if (Status status = check_classes(p.in.classes); !status.ok()) return status;
  const bool divides = p.in.options.reduction == Reduction::kMean && p.upstream.dloss != nullptr;
  if (divides) {
    if (Status status = add_up({p.in, nullptr, nullptr, scratch}, stream); !status.ok()) return status;
  }
  const CrossEntropyBackwardArguments arguments{p, loss_plan(p.in.classes, p.dtype), divides ? scratch : nullptr};
  return dispatch(p.dtype, [&]<typename T>(T) { return launch_cross_entropy_backward<T>(arguments, stream); });
}

}  // namespace flagattn::sm80
