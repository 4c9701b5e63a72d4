// Picks the instantiation of the forward kernel.
#include "attention/cuda/sm80/forward.h"

#include "attention/cuda/sm80/checks.h"
#include "attention/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

// Instantiated where instances.cmake says so.
template <typename Element, int kHeadDim, bool kTerms>
Status launch_attention_forward(const AttentionParams& params, Stream stream);

namespace {

template <typename Element, int kHeadDim>
Status launch(const AttentionParams& params, Stream stream) {
  return has_score_terms(params) ? launch_attention_forward<Element, kHeadDim, true>(params, stream)
                                 : launch_attention_forward<Element, kHeadDim, false>(params, stream);
}

template <typename Element>
Status launch(const AttentionParams& params, Stream stream) {
  switch (forward_kernel_head_dim(params.head_dim, params.head_dim_v)) {
    case 64:
      return launch<Element, 64>(params, stream);
    case 96:
      return launch<Element, 96>(params, stream);
    case 128:
      return launch<Element, 128>(params, stream);
    case 192:
      return launch<Element, 192>(params, stream);
    default:
      return launch<Element, 256>(params, stream);
  }
}

}  // namespace

Status run_attention_forward(const AttentionParams& params, Stream stream) {
  if (Status status = check_operands(params); !status.ok()) return status;
  return params.dtype == DType::kBFloat16 ? launch<BFloat16>(params, stream) : launch<Float16>(params, stream);
}

}  // namespace flagattn::sm80
