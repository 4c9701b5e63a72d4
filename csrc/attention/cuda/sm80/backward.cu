// Checks what the backward kernels can do and picks their instantiations.
#include "attention/cuda/sm80/backward.h"

#include <cstdint>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>

#include "attention/cuda/sm80/backward_heuristics.h"

namespace flagattn::sm80 {

template <typename Element>
Status launch_attention_backward_rows(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                      Stream stream);
template <typename Element, int kHeadDim>
Status launch_attention_backward(const AttentionBackwardParams& params, const BackwardWorkspace& workspace,
                                 Stream stream);

#define FLAGATTN_DECLARE_BACKWARD(Element)                                                          \
  extern template Status launch_attention_backward_rows<Element>(const AttentionBackwardParams&,    \
                                                                 const BackwardWorkspace&, Stream); \
  extern template Status launch_attention_backward<Element, 64>(const AttentionBackwardParams&,     \
                                                                const BackwardWorkspace&, Stream);  \
  extern template Status launch_attention_backward<Element, 128>(const AttentionBackwardParams&,    \
                                                                 const BackwardWorkspace&, Stream);
FLAGATTN_DECLARE_BACKWARD(BFloat16)
FLAGATTN_DECLARE_BACKWARD(Float16)
#undef FLAGATTN_DECLARE_BACKWARD

namespace {

// Sizes and strides are counted in rows of 16 bytes, so everything must lie on such borders.
bool is_aligned(const HeadsView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch_stride % 8 == 0 && view.row_stride % 8 == 0 &&
         view.head_stride % 8 == 0;
}

Status check(const AttentionBackwardParams& params) {
  const AttentionParams& forward = params.forward;
  if (forward.dtype == DType::kFloat32) {
    return Status::error("q has dtype float32; attention on CUDA supports bfloat16 and float16");
  }
  if (forward.is_piecewise()) {
    return Status::error("q2 was given; the gradient of piecewise attention is not supported on CUDA yet, only on CPU");
  }
  for (const auto& [name, given] : {std::pair{"bias", forward.bias.data != nullptr},
                                    {"keep", forward.keep.data != nullptr},
                                    {"alibi_slopes", forward.alibi.slopes != nullptr},
                                    {"sinks", forward.sinks != nullptr},
                                    {"dropout_p", forward.dropout.rng_state != nullptr}}) {
    if (given) {
      return Status::error(std::string(name) +
                           " was given; the gradient with it is not supported on CUDA yet, only on CPU");
    }
  }
  for (const auto& [name, size] : {std::pair{"q", forward.head_dim}, std::pair{"v", forward.head_dim_v}}) {
    if (size < 8 || size > 128 || size % 8 != 0) {
      return Status::error(std::string(name) + " has head dimension " + std::to_string(size) +
                           "; the gradient of attention on CUDA supports multiples of 8 from 8 to 128");
    }
  }
  const bool has_q = (forward.is_packed() ? forward.total_q : forward.batch * forward.seqlen_q) > 0;
  const bool has_k = (forward.is_packed() ? forward.total_k : forward.batch * forward.seqlen_k) > 0;
  const std::tuple<const char*, const HeadsView&, bool> operands[] = {
      {"q", forward.q, has_q},      {"k", forward.k, has_k},  {"v", forward.v, has_k},  {"out", forward.out, has_q},
      {"dout", params.dout, has_q}, {"dq", params.dq, has_q}, {"dk", params.dk, has_k}, {"dv", params.dv, has_k}};
  for (const auto& [name, view, has_rows] : operands) {
    if (has_rows && !is_aligned(view)) {
      return Status::error(std::string(name) +
                           " does not start at, or step in, multiples of 16 bytes as attention on CUDA needs; "
                           "call .contiguous() on it");
    }
  }
  for (const auto& [name, length] :
       {std::pair{"seqlen_q", forward.seqlen_q}, std::pair{"seqlen_k", forward.seqlen_k}}) {
    if (length > (int64_t{1} << 30)) {
      return Status::error(std::string(name) + " is " + std::to_string(length) +
                           "; attention on CUDA supports at most 2^30");
    }
  }
  return Status::success();
}

template <typename Element>
Status launch(const AttentionBackwardParams& params, const BackwardWorkspace& workspace, Stream stream) {
  if (Status status = launch_attention_backward_rows<Element>(params, workspace, stream); !status.ok()) return status;
  return workspace.kernel_head_dim == 64 ? launch_attention_backward<Element, 64>(params, workspace, stream)
                                         : launch_attention_backward<Element, 128>(params, workspace, stream);
}

}  // namespace

int64_t attention_backward_workspace(const AttentionParams& params) {
  return BackwardWorkspace::of(params).floats(params);
}

Status run_attention_backward(const AttentionBackwardParams& params, Stream stream) {
  if (Status status = check(params); !status.ok()) return status;
  BackwardWorkspace workspace = BackwardWorkspace::of(params.forward);
  workspace.place(params.forward, params.workspace);
  return params.forward.dtype == DType::kBFloat16 ? launch<BFloat16>(params, workspace, stream)
                                                  : launch<Float16>(params, workspace, stream);
}

}  // namespace flagattn::sm80
