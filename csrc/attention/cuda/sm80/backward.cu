// Checks what the backward kernels can do and picks their instantiations.
#include "attention/cuda/sm80/backward.h"

#include <cstdint>
#include <string>
#include <tuple>

#include "attention/cuda/sm80/backward_heuristics.h"
#include "attention/cuda/sm80/checks.h"

namespace flagattn::sm80 {

// Instantiated where instances.cmake says so.
template <typename Element>
Status launch_attention_backward_rows(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                      Stream stream);
template <typename Element, int kHeadDim, bool kTerms>
Status launch_attention_backward(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                 Stream stream);
template <typename Element, int kHeadDim>
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
Status launch_products(const AttentionBackwardParams& params, const BackwardWorkspace& workspace, Stream stream) {
  const bool terms = has_score_terms(params.forward);
  switch (workspace.kernel_head_dim) {
    case 64:
      return terms ? launch_attention_backward<Element, 64, true>(params, workspace, stream)
                   : launch_attention_backward<Element, 64, false>(params, workspace, stream);
    case 96:
      return launch_attention_backward<Element, 96, false>(params, workspace, stream);
    case 128:
      return terms ? launch_attention_backward<Element, 128, true>(params, workspace, stream)
                   : launch_attention_backward<Element, 128, false>(params, workspace, stream);
    case 192:
      return launch_attention_backward<Element, 192, false>(params, workspace, stream);
    default:
      return terms ? launch_attention_backward<Element, 256, true>(params, workspace, stream)
                   : launch_attention_backward<Element, 256, false>(params, workspace, stream);
  }
}

template <typename Element>
Status launch_bias(const AttentionBackwardParams& params, const BackwardWorkspace& workspace, Stream stream) {
  if (workspace.kernel_head_dim <= 128) return launch_attention_bias_gradient<Element, 128>(params, workspace, stream);
  return launch_attention_bias_gradient<Element, 256>(params, workspace, stream);
}

template <typename Element>
Status launch(const AttentionBackwardParams& params, const BackwardWorkspace& workspace, Stream stream) {
  if (Status status = launch_attention_backward_rows<Element>(params, workspace, stream); !status.ok()) return status;
  if (Status status = launch_products<Element>(params, workspace, stream); !status.ok()) return status;
  if (params.dbias.data != nullptr) {
    if (Status status = launch_bias<Element>(params, workspace, stream); !status.ok()) return status;
  }
  return params.forward.sinks == nullptr ? Status::success() : launch_sink_gradient(params, stream);
}

}  // namespace

int64_t attention_backward_workspace(const AttentionParams& params) { return BackwardWorkspace::of(params).floats(); }

Status run_attention_backward(const AttentionBackwardParams& params, Stream stream) {
  if (Status status = check_operands(params.forward); !status.ok()) return status;
  if (Status status = check_gradients(params); !status.ok()) return status;
  BackwardWorkspace workspace = BackwardWorkspace::of(params.forward);
  workspace.place(params.workspace);
  return params.forward.dtype == DType::kBFloat16 ? launch<BFloat16>(params, workspace, stream)
                                                  : launch<Float16>(params, workspace, stream);
}

}  // namespace flagattn::sm80
