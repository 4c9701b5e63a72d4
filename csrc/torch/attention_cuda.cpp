// The attention forward ops on CUDA: check, allocate, fill params, launch on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "attention/cuda/sm80/forward.h"
#include "torch/attention_args.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"

namespace flagattn {
namespace {

// Rows behind the last packed sequence are the kernel's to clear: their number is known on the device only.
std::tuple<Tensor, Tensor> run_forward(const AttentionArgs& args) {
  AttentionParams params = checked_params(args);
  check_values_if_asked(args, params);
  const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());
  Tensor out = empty_out(params, args.q);
  Tensor lse = empty_lse(params, args.q);
  params.out = heads_output(out);
  params.lse = rows_output(lse);
  check(sm80::run_attention_forward(params, current_cuda_stream(args.q.get_device_index())), args.op);
  return {std::move(out), std::move(lse)};
}

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
    int64_t window_left, int64_t window_right, double softcap, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& keep, const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& sinks,
    const std::optional<Tensor>& rng_state, double dropout_p) {
  return run_forward({"attention_forward", q, k, v, nullptr, nullptr, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                      max_seqlen_k,
                      /*dist_threshold=*/0, softmax_scale, window_left, window_right, softcap,
                      ScoreArgs{pointer_to(bias), pointer_to(keep), pointer_to(alibi_slopes), pointer_to(sinks),
                                pointer_to(rng_state), dropout_p}});
}

std::tuple<Tensor, Tensor> piecewise_forward(const Tensor& q1, const Tensor& k1, const Tensor& q2, const Tensor& k2,
                                             const Tensor& v, const std::optional<Tensor>& cu_seqlens_q,
                                             const std::optional<Tensor>& cu_seqlens_k, int64_t max_seqlen_q,
                                             int64_t max_seqlen_k, int64_t dist_threshold, double softmax_scale,
                                             int64_t window_left, int64_t window_right, double softcap,
                                             const std::optional<Tensor>& sinks) {
  return run_forward({"piecewise_forward", q1, k1, v, &q2, &k2, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                      dist_threshold, softmax_scale, window_left, window_right, softcap,
                      ScoreArgs{.sinks = pointer_to(sinks)}});
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&flagattn::attention_forward));
  m.impl("piecewise_forward", TORCH_BOX(&flagattn::piecewise_forward));
}
