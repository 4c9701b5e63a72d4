// One instantiation of the decode kernel and its launch. CMake writes a source file per instantiation that includes
// this.
#pragma once

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/decode_kernel.cuh"

namespace flagattn::sm80 {

template <typename Element, int kHeadDim>
Status launch_attention_decode(const DecodeArguments& arguments, Stream stream) {
  using Traits = ForwardTraits<Element, kHeadDim, true>;  // its tiles have 16 rows a warp
  return ptx::launch<DecodeShared<Traits>>(attention_decode_kernel<Traits>, arguments.schedule.blocks(),
                                           Traits::kThreads, stream, arguments);
}

}  // namespace flagattn::sm80
