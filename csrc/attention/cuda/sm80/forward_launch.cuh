// One instantiation of the forward kernel and its launch. CMake writes a source file per instantiation that includes
// this.
#pragma once

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/forward_kernel.cuh"

namespace flagattn::sm80 {

template <typename Element, int kHeadDim, bool kTerms>
Status launch_attention_forward(const AttentionParams& params, Stream stream) {
  using Traits = ForwardTraits<Element, kHeadDim, kTerms>;
  const ForwardArguments arguments{params, forward_schedule(params, Traits::kBlockM),
                                   ScoreScale::of(params.softmax_scale, params.softcap, kTerms)};
  return ptx::launch<ForwardShared<Traits>>(attention_forward_kernel<Traits>, arguments.schedule.blocks(),
                                            Traits::kThreads, stream, arguments);
}

}  // namespace flagattn::sm80
