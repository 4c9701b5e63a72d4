// attention_backward and piecewise_backward on CUDA: check, allocate, fill params, launch on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "attention/cuda/sm80/backward.h"
#include "attention/cuda/sm80/checks.h"
#include "torch/attention_args.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"

namespace flagattn {
namespace {

struct Gradients {
  Tensor dq, dk, dv;
  Tensor dbias, dsinks;  // without elements where they are not asked for
  std::optional<Tensor> dq2, dk2;
};

// Rows behind the last packed sequence are the kernel's to clear: their number is known on the device only.
Gradients run_backward(const AttentionArgs& args, const Tensor& dout, const std::optional<Tensor>& dlse,
                       const Tensor& out, const Tensor& lse, bool needs_dbias) {
  AttentionBackwardParams params;
  params.forward = checked_params(args);
  check_values_if_asked(args, params.forward);
  check_backward(args.op, params, {args.name_q(), args.q}, {"dout", dout}, dlse, {"out", out}, {"lse", lse});
  const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());

  // autograd hands on any view of a gradient, also one that the kernels cannot read in steps of 16 bytes.
  std::optional<Tensor> own_dout;
  if (!sm80::is_aligned(params.dout)) {
    own_dout = empty_like_device(dout, dout.scalar_type(), dout.sizes());
    torch::stable::copy_(*own_dout, dout);
    params.dout = heads_input({"dout", *own_dout});
  }

  const Tensor *bias = args.scores.bias, *sinks = args.scores.sinks;
  check(!needs_dbias || bias != nullptr, args.op, "needs_dbias is true, but there is no bias.");
  const auto nothing = [&] { return empty_like_device(args.q, ScalarType::Float, {0}); };
  Gradients gradients{empty_gradient(args.q),
                      empty_gradient(args.k),
                      empty_gradient(args.v),
                      needs_dbias ? empty_gradient(*bias) : nothing(),
                      sinks != nullptr ? empty_gradient(*sinks) : nothing(),
                      {},
                      {}};
  params.dq = heads_output(gradients.dq);
  params.dk = heads_output(gradients.dk);
  params.dv = heads_output(gradients.dv);
  if (params.forward.is_piecewise()) {
    gradients.dq2 = empty_gradient(*args.q2);
    gradients.dk2 = empty_gradient(*args.k2);
    params.dq2 = heads_output(*gradients.dq2);
    params.dk2 = heads_output(*gradients.dk2);
  }
  if (needs_dbias) params.dbias = scores_view({"dbias", gradients.dbias}, output_data(gradients.dbias));
  std::optional<Tensor> sink_shares;
  if (sinks != nullptr) {
    sink_shares = empty_lse(params.forward, args.q);
    params.dsink_shares = rows_output(*sink_shares);
    params.dsinks = static_cast<float*>(output_data(gradients.dsinks));
  }
  Tensor workspace = empty_like_device(args.q, ScalarType::Float, {sm80::attention_backward_workspace(params.forward)});
  params.workspace = static_cast<float*>(output_data(workspace));
  check(sm80::run_attention_backward(params, current_cuda_stream(args.q.get_device_index())), args.op);
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const std::optional<Tensor>& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& lse, const std::optional<Tensor>& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
    int64_t window_left, int64_t window_right, double softcap, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& keep, const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& sinks,
    const std::optional<Tensor>& rng_state, double dropout_p, bool needs_dbias) {
  Gradients gradients = run_backward(
      {"attention_backward", q, k, v, nullptr, nullptr, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
       /*dist_threshold=*/0, softmax_scale, window_left, window_right, softcap,
       ScoreArgs{pointer_to(bias), pointer_to(keep), pointer_to(alibi_slopes), pointer_to(sinks), pointer_to(rng_state),
                 dropout_p}},
      dout, dlse, out, lse, needs_dbias);
  return {std::move(gradients.dq), std::move(gradients.dk), std::move(gradients.dv), std::move(gradients.dbias),
          std::move(gradients.dsinks)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> piecewise_backward(
    const Tensor& dout, const std::optional<Tensor>& dlse, const Tensor& q1, const Tensor& k1, const Tensor& q2,
    const Tensor& k2, const Tensor& v, const Tensor& out, const Tensor& lse, const std::optional<Tensor>& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, int64_t dist_threshold,
    double softmax_scale, int64_t window_left, int64_t window_right, double softcap,
    const std::optional<Tensor>& sinks) {
  Gradients gradients = run_backward(
      {"piecewise_backward", q1, k1, v, &q2, &k2, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
       dist_threshold, softmax_scale, window_left, window_right, softcap, ScoreArgs{.sinks = pointer_to(sinks)}},
      dout, dlse, out, lse, /*needs_dbias=*/false);
  return {std::move(gradients.dq),   std::move(gradients.dk), std::move(*gradients.dq2),
          std::move(*gradients.dk2), std::move(gradients.dv), std::move(gradients.dsinks)};
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("attention_backward", TORCH_BOX(&flagattn::attention_backward));
  m.impl("piecewise_backward", TORCH_BOX(&flagattn::piecewise_backward));
}
