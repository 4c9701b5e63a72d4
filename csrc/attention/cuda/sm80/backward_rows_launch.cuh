// One instantiation of the kernel that goes before the backward's main kernel, and its launch.
#pragma once

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/backward_rows_kernel.cuh"

namespace flagattn::sm80 {

template <typename Element>
Status launch_attention_backward_rows(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                      Stream stream) {
  const BackwardRowsArguments arguments{params, rows_schedule(params.forward, workspace.block_m), workspace};
  return ptx::launch<BackwardRowsTraits::SharedStorage>(attention_backward_rows_kernel<Element>,
                                                        arguments.schedule.blocks(), BackwardRowsTraits::kThreads,
                                                        stream, arguments);
}

}  // namespace flagattn::sm80
