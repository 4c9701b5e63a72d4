// attention_column_sums on the CPU: check, allocate, fill params, launch.
#include <torch/csrc/stable/library.h>

#include "attention/cpu/attention.h"
#include "torch/attention_args.h"
#include "torch/executor.h"

namespace flagattn {
namespace {

Tensor attention_column_sums(const Tensor& q, const Tensor& k, const Tensor& lse, double softmax_scale,
                             int64_t window_left, int64_t window_right) {
  constexpr const char* op = "attention_column_sums";
  const std::optional<Tensor> dense;
  // There are no values; k stands in for them in the checks.
  AttentionParams params = checked_params({op, q, k, k, nullptr, nullptr, dense, dense, 0, 0, /*dist_threshold=*/0,
                                           softmax_scale, window_left, window_right, /*softcap=*/0.0});
  const Argument statistics("lse", lse);
  check_dtype(op, statistics, ScalarType::Float);
  check_same_device(op, statistics, {"q", q});
  check_shape(op, statistics, {params.batch, params.heads_q, params.seqlen_q}, "(batch, heads_q, seqlen_q)");
  check_last_dim_contiguous(op, statistics);
  params.lse = rows_input(statistics);
  Tensor sums = empty_like_device(q, ScalarType::Float, {params.batch, params.heads_q, params.seqlen_k});
  check(cpu::run_attention_column_sums(params, rows_output(sums), torch_threads()), op);
  return sums;
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("attention_column_sums", TORCH_BOX(&flagattn::attention_column_sums));
}
