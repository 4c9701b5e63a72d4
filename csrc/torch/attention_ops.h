// attention_forward and piecewise_forward as their schemas spell them: arguments gathered and checked, results
// allocated, for any device to fill.
#pragma once

#include <optional>
#include <tuple>

#include "torch/attention_args.h"

namespace flagattn {

using OptionalTensor = std::optional<Tensor>;
using AttentionResults = std::tuple<Tensor, Tensor>;  // out, lse

// Memory for the results, to which params then point.
inline AttentionResults empty_results(AttentionParams& params, const Tensor& q) {
  Tensor out = empty_out(params, q), lse = empty_lse(params, q);
  params.out = heads_output(out);
  params.lse = rows_output(lse);
  return {std::move(out), std::move(lse)};
}

// Device::check_values(args, params): of cu_seqlens, where the device looks at them.
// Device::forward(args, params, out): attends; `out` is the tensor of params.out.
template <typename Device>
struct AttentionOps {
  static AttentionResults attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                            int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
                                            int64_t window_left, int64_t window_right, double softcap,
                                            const OptionalTensor& bias, const OptionalTensor& keep,
                                            const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                                            const OptionalTensor& rng_state, double dropout_p) {
    return forward({"attention_forward", q, k, v, nullptr, nullptr, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                    max_seqlen_k, /*dist_threshold=*/0, softmax_scale, window_left, window_right, softcap,
                    ScoreArgs{pointer_to(bias), pointer_to(keep), pointer_to(alibi_slopes), pointer_to(sinks),
                              pointer_to(rng_state), dropout_p}});
  }

  static AttentionResults piecewise_forward(const Tensor& q1, const Tensor& k1, const Tensor& q2, const Tensor& k2,
                                            const Tensor& v, const OptionalTensor& cu_seqlens_q,
                                            const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
                                            int64_t max_seqlen_k, int64_t dist_threshold, double softmax_scale,
                                            int64_t window_left, int64_t window_right, double softcap,
                                            const OptionalTensor& sinks) {
    return forward({"piecewise_forward", q1, k1, v, &q2, &k2, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                    dist_threshold, softmax_scale, window_left, window_right, softcap,
                    ScoreArgs{.sinks = pointer_to(sinks)}});
  }

  template <typename Library>
  static void add_to(Library& library) {
    library.impl("attention_forward", TORCH_BOX(&AttentionOps::attention_forward));
    library.impl("piecewise_forward", TORCH_BOX(&AttentionOps::piecewise_forward));
  }

 private:
  static AttentionResults forward(const AttentionArgs& args) {
    AttentionParams params = checked_params(args);
    Device::check_values(args, params);
    AttentionResults results = empty_results(params, args.q);
    Device::forward(args, params, std::get<0>(results));
    return results;
  }
};

}  // namespace flagattn
