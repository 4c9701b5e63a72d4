// One instantiation of the bias gradient's kernel and its launch.
#pragma once

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/backward_bias_kernel.cuh"

namespace flagattn::sm80 {

template <typename Element, int kHeadDim, bool kSmall>
Status launch_attention_bias_gradient(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                      Stream stream) {
  using Traits = BiasTraits<Element, kHeadDim, kSmall>;
  const AttentionParams& forward = params.forward;
  const BackwardBiasArguments arguments{params, bias_schedule(params, Traits::kTile), workspace,
                                        GradientScale::of(forward.softmax_scale, forward.softcap, true)};
  return ptx::launch<typename Traits::Tiles>(attention_bias_gradient_kernel<Traits>, arguments.schedule.blocks(),
                                             Traits::kThreads, stream, arguments);
}

}  // namespace flagattn::sm80
