// Checks what the backward kernels can do and picks their instantiations.
#include "attention/cuda/sm80/backward.h"

#include <cstdint>
#include <string>
#include <tuple>

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/backward_heuristics.h"
#include "attention/cuda/sm80/checks.h"

namespace flagattn::sm80 {

// Instantiated where instances.cmake says so.
template <typename Element>
Status launch_attention_backward_rows(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                      Stream stream);
template <typename Element, int kHeadDim, bool kTerms, bool kSmall>
Status launch_attention_backward(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                 Stream stream);
template <typename Element, int kHeadDim, bool kSmall>
Status launch_attention_bias_gradient(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                      Stream stream);
Status launch_sink_gradient(const AttentionBackwardParams& params, Stream stream);

namespace {

Status check_gradients(const AttentionBackwardParams& params) {
  const AttentionParams& forward = params.forward;
  const OperandSizes sizes_q = sizes_of_q(forward), sizes_k = sizes_of_k(forward);
  const std::tuple<const char*, const HeadsView&, const OperandSizes&> operands[] = {
      {"dout", params.dout, sizes_q}, {"dq", params.dq, sizes_q},   {"dk", params.dk, sizes_k},
      {"dv", params.dv, sizes_k},     {"dq2", params.dq2, sizes_q}, {"dk2", params.dk2, sizes_k}};
  for (const auto& [name, view, sizes] : operands) {
    if (Status status = check_alignment(name, view, sizes); !status.ok()) return status;
  }
  return Status::success();
}

template <typename Element>
auto products_launcher(const BackwardKernel& kernel) {
  switch (kernel.head_dim) {
    case 64:
      return kernel.has_terms ? launch_attention_backward<Element, 64, true, false>
                              : launch_attention_backward<Element, 64, false, false>;
    case 96:
      return launch_attention_backward<Element, 96, false, false>;
    case 128:
      if (kernel.is_small) return launch_attention_backward<Element, 128, true, true>;
      return kernel.has_terms ? launch_attention_backward<Element, 128, true, false>
                              : launch_attention_backward<Element, 128, false, false>;
    case 192:
      return launch_attention_backward<Element, 192, false, false>;
    default:
      if (kernel.is_small) return launch_attention_backward<Element, 256, true, true>;
      return kernel.has_terms ? launch_attention_backward<Element, 256, true, false>
                              : launch_attention_backward<Element, 256, false, false>;
  }
}

template <typename Element>
auto bias_launcher(const BackwardKernel& kernel) {
  if (kernel.head_dim <= 128) return launch_attention_bias_gradient<Element, 128, false>;
  return kernel.is_small ? launch_attention_bias_gradient<Element, 256, true>
                         : launch_attention_bias_gradient<Element, 256, false>;
}

BackwardKernel kernel_here(const AttentionParams& params) { return backward_kernel(params, ptx::most_shared_bytes()); }

template <typename Element>
Status launch(const AttentionBackwardParams& params, const BackwardKernel& kernel, Stream stream) {
  BackwardWorkspace workspace = BackwardWorkspace::of(params.forward, kernel);
  workspace.place(params.workspace);
  if (Status status = launch_attention_backward_rows<Element>(params, workspace, stream); !status.ok()) return status;
  if (Status status = products_launcher<Element>(kernel)(params, workspace, stream); !status.ok()) return status;
  if (params.dbias.data != nullptr) {
    if (Status status = bias_launcher<Element>(kernel)(params, workspace, stream); !status.ok()) return status;
  }
  return params.forward.sinks == nullptr ? Status::success() : launch_sink_gradient(params, stream);
}

}  // namespace

int64_t attention_backward_workspace(const AttentionParams& params) {
  return BackwardWorkspace::of(params, kernel_here(params)).floats();
}

Status run_attention_backward(const AttentionBackwardParams& params, Stream stream) {
  if (Status status = check_operands(params.forward); !status.ok()) return status;
  if (Status status = check_gradients(params); !status.ok()) return status;
  const BackwardKernel kernel = kernel_here(params.forward);
  return params.forward.dtype == DType::kBFloat16 ? launch<BFloat16>(params, kernel, stream)
                                                  : launch<Float16>(params, kernel, stream);
}

}  // namespace flagattn::sm80
