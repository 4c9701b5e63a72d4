// cross_entropy and linear_cross_entropy with their gradients on the CPU: check, allocate, fill params, launch.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "linear/cpu/linear.h"
#include "loss/cpu/loss.h"
#include "torch/executor.h"
#include "torch/loss_ops.h"

namespace flagattn {
namespace {

// Given logits

struct OnCpu {
  static void check_targets(const char*, const LossRows&, const Tensor&) {}  // the kernels do

  static void forward(const char* op, const CrossEntropyParams& params, const Tensor&) {
    check(cpu::run_cross_entropy(params, torch_threads()), op);
  }
  static void backward(const char* op, const CrossEntropyBackwardParams& params, const Tensor&) {
    check(cpu::run_cross_entropy_backward(params, torch_threads()), op);
  }
};

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

MatrixProduct product_of(const LinearOperands& operands) {
  return cpu::invariant_product(operands.hidden_dtype == operands.weight_dtype ? operands.weight_dtype
                                                                               : DType::kFloat32);
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
  check(cpu::run_linear_cross_entropy(params, torch_threads(), product_of(params.operands)), op);
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
  check(cpu::run_linear_cross_entropy_backward(params, torch_threads(), product_of(params.operands)), op);
  return {std::move(dhidden), std::move(dweight)};
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  flagattn::CrossEntropyOps<flagattn::OnCpu>::add_to(m);
  m.impl("linear_cross_entropy", TORCH_BOX(&flagattn::linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&flagattn::linear_cross_entropy_backward));
}
