// cross_entropy and linear_cross_entropy with their gradients on the CPU: check, allocate, fill params, launch.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "loss/cpu/loss.h"
#include "torch/executor.h"
#include "torch/matrix_product.h"
#include "torch/strided_rows.h"

namespace flagattn {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor>;

const float* check_per_row(const char* op, const Argument& argument, int64_t rows) {
  check_dtype(op, argument, ScalarType::Float);
  check(argument.tensor.numel() == rows && argument.tensor.is_contiguous(), op, argument.name, " has shape ",
        text_of(argument.sizes), "; it must be contiguous with ", rows, rows == 1 ? " element." : " elements.");
  return static_cast<const float*>(input_data(argument.tensor));
}

LossRows loss_rows(const char* op, const Argument& x, int64_t classes, const Tensor& targets,
                   const std::optional<Tensor>& token_weights, int64_t ignore_index, int64_t reduction, double softcap,
                   double z_loss, double label_smoothing) {
  const Argument targets_argument("targets", targets);
  LossRows in;
  in.rows = rows_by_cols(x).rows;
  in.classes = classes;
  check_dtype(op, targets_argument, ScalarType::Long);
  check_same_device(op, targets_argument, x);
  check(targets.numel() == in.rows && targets.is_contiguous(), op, "targets has shape ",
        text_of(targets_argument.sizes), "; it must be contiguous with one target for each of the ", in.rows, " rows.");
  in.targets = static_cast<const int64_t*>(input_data(targets));
  if (token_weights.has_value()) in.weights = check_per_row(op, {"token_weights", *token_weights}, in.rows);
  check(0 <= reduction && reduction <= 2, op, "reduction is ", reduction,
        "; it must be 0 (none), 1 (mean) or 2 (sum).");
  in.options = {.ignore_index = ignore_index,
                .reduction = static_cast<Reduction>(reduction),
                .softcap = static_cast<float>(softcap),
                .z_loss = static_cast<float>(z_loss),
                .label_smoothing = static_cast<float>(label_smoothing)};
  return in;
}

// The loss, lse, and both parts of lse as (2, rows).
Results empty_results(const Argument& x, const LossRows& in, LossResults* out) {
  const Sizes leading(x.sizes.data(), x.sizes.size() - 1);
  const bool reduces = in.options.reduction != Reduction::kNone;
  Tensor loss = empty_like_device(x.tensor, ScalarType::Float, reduces ? Sizes(x.sizes.data(), size_t{0}) : leading);
  Tensor lse = empty_like_device(x.tensor, ScalarType::Float, leading);
  Tensor parts = empty_like_device(x.tensor, ScalarType::Float, {2, in.rows});
  out->loss = static_cast<float*>(output_data(loss));
  out->lse = static_cast<float*>(output_data(lse));
  out->maximum = static_cast<float*>(output_data(parts));
  out->sum = out->maximum + in.rows;
  return {std::move(loss), std::move(lse), std::move(parts)};
}

LossUpstream upstream_of(const char* op, const LossRows& in, const std::optional<Tensor>& dloss,
                         const std::optional<Tensor>& dlse, const Tensor& lse_parts) {
  LossUpstream upstream;
  const int64_t losses = in.options.reduction == Reduction::kNone ? in.rows : 1;
  if (dloss.has_value()) upstream.dloss = check_per_row(op, {"dloss", *dloss}, losses);
  if (dlse.has_value()) upstream.dlse = check_per_row(op, {"dlse", *dlse}, in.rows);
  upstream.maximum = check_per_row(op, {"lse_parts", lse_parts}, 2 * in.rows);
  upstream.sum = upstream.maximum + in.rows;
  return upstream;
}

StridedRows contiguous_rows(const Tensor& tensor, int64_t cols) {
  StridedRows rows;
  rows.data = output_data(tensor);
  rows.strides[0] = cols;
  return rows;
}

// Given logits

Results cross_entropy(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& token_weights,
                      int64_t ignore_index, int64_t reduction, double softcap, double z_loss, double label_smoothing) {
  constexpr const char* op = "cross_entropy";
  const Argument x("logits", logits);
  CrossEntropyParams params;
  params.dtype = check_floating(op, x);
  params.logits = strided_rows(op, x);
  params.in = loss_rows(op, x, rows_by_cols(x).cols, targets, token_weights, ignore_index, reduction, softcap, z_loss,
                        label_smoothing);
  Results results = empty_results(x, params.in, &params.out);
  check(cpu::run_cross_entropy(params, torch_threads()), op);
  return results;
}

CrossEntropyBackwardParams backward_params(const char* op, const std::optional<Tensor>& dloss,
                                           const std::optional<Tensor>& dlse, const Argument& logits,
                                           const Tensor& targets, const std::optional<Tensor>& token_weights,
                                           const Tensor& lse_parts, int64_t ignore_index, int64_t reduction,
                                           double softcap, double z_loss, double label_smoothing) {
  CrossEntropyBackwardParams params;
  params.dtype = check_floating(op, logits);
  params.logits = strided_rows(op, logits);
  params.in = loss_rows(op, logits, rows_by_cols(logits).cols, targets, token_weights, ignore_index, reduction, softcap,
                        z_loss, label_smoothing);
  params.upstream = upstream_of(op, params.in, dloss, dlse, lse_parts);
  return params;
}

Tensor cross_entropy_backward(const std::optional<Tensor>& dloss, const std::optional<Tensor>& dlse,
                              const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& token_weights,
                              const Tensor& lse_parts, int64_t ignore_index, int64_t reduction, double softcap,
                              double z_loss, double label_smoothing) {
  constexpr const char* op = "cross_entropy_backward";
  const Argument x("logits", logits);
  CrossEntropyBackwardParams params = backward_params(op, dloss, dlse, x, targets, token_weights, lse_parts,
                                                      ignore_index, reduction, softcap, z_loss, label_smoothing);
  Tensor dlogits = empty_like_device(logits, x.dtype, x.sizes);
  params.dlogits = contiguous_rows(dlogits, params.in.classes);
  check(cpu::run_cross_entropy_backward(params, torch_threads()), op);
  return dlogits;
}

void cross_entropy_backward_inplace(const std::optional<Tensor>& dloss, const std::optional<Tensor>& dlse,
                                    const Tensor& logits, const Tensor& targets,
                                    const std::optional<Tensor>& token_weights, const Tensor& lse_parts,
                                    int64_t ignore_index, int64_t reduction, double softcap, double z_loss,
                                    double label_smoothing) {
  constexpr const char* op = "cross_entropy_backward_";
  const Argument x("logits", logits);
  CrossEntropyBackwardParams params = backward_params(op, dloss, dlse, x, targets, token_weights, lse_parts,
                                                      ignore_index, reduction, softcap, z_loss, label_smoothing);
  params.dlogits = params.logits;
  check(cpu::run_cross_entropy_backward(params, torch_threads()), op);
}

// Logits of hidden states

LinearOperands linear_operands(const char* op, const Argument& hidden, const Argument& weight, const Tensor& targets,
                               const std::optional<Tensor>& token_weights, int64_t ignore_index, int64_t reduction,
                               double softcap, double z_loss, double label_smoothing) {
  LinearOperands operands;
  operands.hidden_dtype = check_floating(op, hidden);
  operands.weight_dtype = check_floating(op, weight);
  check_same_device(op, weight, hidden);
  operands.hidden = strided_rows(op, hidden);
  operands.features = rows_by_cols(hidden).cols;
  check(weight.dim() == 2 && weight.sizes[1] == operands.features, op, "weight has shape ", text_of(weight.sizes),
        "; it must be (classes, ", operands.features, ").");
  check_last_dim_contiguous(op, weight);
  operands.weight = input_data(weight.tensor);
  operands.weight_stride = weight.strides[0];
  operands.in = loss_rows(op, hidden, weight.sizes[0], targets, token_weights, ignore_index, reduction, softcap, z_loss,
                          label_smoothing);
  return operands;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy(
    const Tensor& hidden, const Tensor& weight, const Tensor& targets, const std::optional<Tensor>& token_weights,
    int64_t ignore_index, int64_t reduction, double softcap, double z_loss, double label_smoothing, bool takes_dhidden,
    bool takes_dweight) {
  constexpr const char* op = "linear_cross_entropy";
  const Argument hidden_argument("hidden", hidden), weight_argument("weight", weight);
  LinearCrossEntropyParams params;
  params.operands = linear_operands(op, hidden_argument, weight_argument, targets, token_weights, ignore_index,
                                    reduction, softcap, z_loss, label_smoothing);
  if (takes_dhidden || takes_dweight) {
    check(weight_argument.dtype == ScalarType::Float, op, "weight is ", name_of(weight_argument.dtype),
          "; gradients are taken on the way only where it is float32.");
    check(params.operands.in.options.reduction != Reduction::kNone, op,
          "reduction is 0 (none); gradients are taken on the way only of a reduced loss.");
  }
  auto [loss, lse, parts] = empty_results(hidden_argument, params.operands.in, &params.out);
  const auto like = [](const Argument& operand, bool taken) {
    return empty_like_device(operand.tensor, ScalarType::Float, taken ? operand.sizes : Sizes({0}));
  };
  Tensor dhidden = like(hidden_argument, takes_dhidden), dweight = like(weight_argument, takes_dweight);
  if (takes_dhidden) params.dhidden = static_cast<float*>(output_data(dhidden));
  if (takes_dweight) params.dweight = static_cast<float*>(output_data(dweight));
  check(cpu::run_linear_cross_entropy(params, torch_threads(), aten_product()), op);
  return {std::move(loss), std::move(lse), std::move(parts), std::move(dhidden), std::move(dweight)};
}

std::tuple<Tensor, Tensor> linear_cross_entropy_backward(
    const std::optional<Tensor>& dloss, const std::optional<Tensor>& dlse, const Tensor& hidden, const Tensor& weight,
    const Tensor& targets, const std::optional<Tensor>& token_weights, const Tensor& lse_parts, int64_t ignore_index,
    int64_t reduction, double softcap, double z_loss, double label_smoothing, bool needs_dhidden, bool needs_dweight) {
  constexpr const char* op = "linear_cross_entropy_backward";
  const Argument hidden_argument("hidden", hidden), weight_argument("weight", weight);
  LinearCrossEntropyBackwardParams params;
  params.operands = linear_operands(op, hidden_argument, weight_argument, targets, token_weights, ignore_index,
                                    reduction, softcap, z_loss, label_smoothing);
  params.upstream = upstream_of(op, params.operands.in, dloss, dlse, lse_parts);
  const auto like = [](const Argument& operand, bool needed) {
    return empty_like_device(operand.tensor, operand.dtype, needed ? operand.sizes : Sizes({0}));
  };
  Tensor dhidden = like(hidden_argument, needs_dhidden), dweight = like(weight_argument, needs_dweight);
  if (needs_dhidden) params.dhidden = output_data(dhidden);
  if (needs_dweight) params.dweight = output_data(dweight);
  check(cpu::run_linear_cross_entropy_backward(params, torch_threads(), aten_product()), op);
  return {std::move(dhidden), std::move(dweight)};
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&flagattn::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&flagattn::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&flagattn::cross_entropy_backward_inplace));
  m.impl("linear_cross_entropy", TORCH_BOX(&flagattn::linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&flagattn::linear_cross_entropy_backward));
}
