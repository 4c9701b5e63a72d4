// attention_backward and piecewise_backward as their schemas spell them: arguments gathered and checked, gradients
// allocated, for any device to fill.
#pragma once

#include <tuple>

#include "torch/attention_ops.h"

namespace flagattn {

struct Gradients {
  Tensor dq, dk, dv;
  Tensor dbias, dsinks;  // without elements where they are not asked for
  OptionalTensor dq2, dk2;
  OptionalTensor dsink_shares;  // on the way to dsinks
};

// What a backward is given beside the forward's arguments.
struct BackwardArgs {
  const Tensor& dout;
  const OptionalTensor& dlse;
  const Tensor& out;
  const Tensor& lse;
  bool needs_dbias = false;
};

// Fresh gradients, told to params.
inline Gradients empty_gradients(const AttentionArgs& args, bool needs_dbias, AttentionBackwardParams& params) {
  const Tensor *bias = args.scores.bias, *sinks = args.scores.sinks;
  check(!needs_dbias || bias != nullptr, args.op, "needs_dbias is true, but there is no bias.");
  const auto nothing = [&] { return empty_like_device(args.q, ScalarType::Float, {0}); };
  Gradients gradients{.dq = empty_gradient(args.q),
                      .dk = empty_gradient(args.k),
                      .dv = empty_gradient(args.v),
                      .dbias = needs_dbias ? empty_gradient(*bias) : nothing(),
                      .dsinks = sinks != nullptr ? empty_gradient(*sinks) : nothing(),
                      .dq2 = {},
                      .dk2 = {},
                      .dsink_shares = {}};
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
  if (sinks != nullptr) {
    gradients.dsink_shares = empty_lse(params.forward, args.q);
    params.dsink_shares = rows_output(*gradients.dsink_shares);
    params.dsinks = static_cast<float*>(output_data(gradients.dsinks));
  }
  return gradients;
}

// Device::check_values(args, params): of cu_seqlens, where the device looks at them.
// Device::backward(args, given, params, gradients): fills the gradients, whose memory params know.
template <typename Device>
struct AttentionBackwardOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
      const Tensor& dout, const OptionalTensor& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
      const Tensor& out, const Tensor& lse, const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
      int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale, int64_t window_left, int64_t window_right,
      double softcap, const OptionalTensor& bias, const OptionalTensor& keep, const OptionalTensor& alibi_slopes,
      const OptionalTensor& sinks, const OptionalTensor& rng_state, double dropout_p, bool needs_dbias) {
    Gradients gradients =
        backward({"attention_backward", q, k, v, nullptr, nullptr, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                  max_seqlen_k, /*dist_threshold=*/0, softmax_scale, window_left, window_right, softcap,
                  ScoreArgs{pointer_to(bias), pointer_to(keep), pointer_to(alibi_slopes), pointer_to(sinks),
                            pointer_to(rng_state), dropout_p}},
                 {dout, dlse, out, lse, needs_dbias});
    return {std::move(gradients.dq), std::move(gradients.dk), std::move(gradients.dv), std::move(gradients.dbias),
            std::move(gradients.dsinks)};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> piecewise_backward(
      const Tensor& dout, const OptionalTensor& dlse, const Tensor& q1, const Tensor& k1, const Tensor& q2,
      const Tensor& k2, const Tensor& v, const Tensor& out, const Tensor& lse, const OptionalTensor& cu_seqlens_q,
      const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, int64_t dist_threshold,
      double softmax_scale, int64_t window_left, int64_t window_right, double softcap, const OptionalTensor& sinks) {
    Gradients gradients = backward(
        {"piecewise_backward", q1, k1, v, &q2, &k2, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
         dist_threshold, softmax_scale, window_left, window_right, softcap, ScoreArgs{.sinks = pointer_to(sinks)}},
        {dout, dlse, out, lse});
    return {std::move(gradients.dq),   std::move(gradients.dk), std::move(*gradients.dq2),
            std::move(*gradients.dk2), std::move(gradients.dv), std::move(gradients.dsinks)};
  }

  template <typename Library>
  static void add_to(Library& library) {
    library.impl("attention_backward", TORCH_BOX(&AttentionBackwardOps::attention_backward));
    library.impl("piecewise_backward", TORCH_BOX(&AttentionBackwardOps::piecewise_backward));
  }

 private:
  static Gradients backward(const AttentionArgs& args, const BackwardArgs& given) {
    AttentionBackwardParams params;
    params.forward = checked_params(args);
    Device::check_values(args, params.forward);
    check_backward(args.op, params, {args.name_q(), args.q}, {"dout", given.dout}, given.dlse, {"out", given.out},
                   {"lse", given.lse});
    Gradients gradients = empty_gradients(args, given.needs_dbias, params);
    Device::backward(args, given, params, gradients);
    return gradients;
  }
};

}  // namespace flagattn
