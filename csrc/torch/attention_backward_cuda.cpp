// attention_backward on CUDA: check, allocate, fill params, launch on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "attention/cuda/sm80/backward.h"
#include "torch/attention_args.h"
#include "torch/cuda_stream.h"

namespace flagattn {
namespace {

// Rows behind the last packed sequence are the kernel's to clear: their number is known on the device only.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const std::optional<Tensor>& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& lse, const std::optional<Tensor>& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
    int64_t window_left, int64_t window_right, double softcap, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& keep, const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& sinks,
    const std::optional<Tensor>& rng_state, double dropout_p, bool /*needs_dbias: a bias is refused*/) {
  const AttentionArgs args{"attention_backward",
                           q,
                           k,
                           v,
                           nullptr,
                           nullptr,
                           cu_seqlens_q,
                           cu_seqlens_k,
                           max_seqlen_q,
                           max_seqlen_k,
                           /*dist_threshold=*/0,
                           softmax_scale,
                           window_left,
                           window_right,
                           softcap,
                           ScoreArgs{pointer_to(bias), pointer_to(keep), pointer_to(alibi_slopes), pointer_to(sinks),
                                     pointer_to(rng_state), dropout_p}};
  AttentionBackwardParams params;
  params.forward = checked_params(args);
  check_backward(args.op, params, {"q", q}, {"dout", dout}, dlse, {"out", out}, {"lse", lse});
  const torch::stable::accelerator::DeviceGuard on_device(q.get_device_index());
  Tensor dq = empty_gradient(q), dk = empty_gradient(k), dv = empty_gradient(v);
  params.dq = heads_output(dq);
  params.dk = heads_output(dk);
  params.dv = heads_output(dv);
  Tensor workspace = empty_like_device(q, ScalarType::Float, {sm80::attention_backward_workspace(params.forward)});
  params.workspace = static_cast<float*>(output_data(workspace));
  check(sm80::run_attention_backward(params, current_cuda_stream(q.get_device_index())), args.op);
  const auto nothing = [&] { return empty_like_device(q, ScalarType::Float, {0}); };
  return {std::move(dq), std::move(dk), std::move(dv), nothing(), nothing()};
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) { m.impl("attention_backward", TORCH_BOX(&flagattn::attention_backward)); }
