// One instantiation of the backward's main kernel and its launch. CMake writes a source file per instantiation that
// includes this.
#pragma once

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/backward_kernel.cuh"

namespace flagattn::sm80 {

template <typename Element, int kHeadDim, bool kTerms, bool kSmall>
Status launch_attention_backward(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                 Stream stream) {
  using Traits = BackwardTraits<Element, kHeadDim, kTerms, BackwardKernel{kHeadDim, kTerms, kSmall}.tile()>;
  const AttentionParams& forward = params.forward;
  const BackwardArguments arguments{params, backward_schedule(forward, Traits::kBlockN), workspace,
                                    GradientScale::of(forward.softmax_scale, forward.softcap, kTerms)};
  return ptx::launch<BackwardStorage<Traits>>(attention_backward_kernel<Traits>, arguments.schedule.blocks(),
                                              Traits::kThreads, stream, arguments);
}

}  // namespace flagattn::sm80
