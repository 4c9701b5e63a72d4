// Linear maps on the CPU: check, allocate, fill params, launch. The gradients of batch_invariant_linear are calls of
// the same op; few_row_linear has none.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "linear/cpu/linear.h"
#include "torch/executor.h"
#include "torch/few_row_args.h"

namespace flagattn {
namespace {

MatrixView matrix_view(const Argument& matrix) {
  return {input_data(matrix.tensor), matrix.strides[0], matrix.strides[1]};
}

Tensor batch_invariant_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  constexpr const char* op = "batch_invariant_linear";
  const Argument x_argument("x", x), weight_argument("weight", weight);
  LinearParams params;
  params.dtype = check_floating(op, x_argument);
  check_same_dtype(op, weight_argument, x_argument);
  check_same_device(op, weight_argument, x_argument);
  for (const Argument* matrix : {&x_argument, &weight_argument}) {
    check(matrix->dim() == 2, op, matrix->name, " has shape ", text_of(matrix->sizes), "; it must be a matrix.");
  }
  params.rows = x_argument.sizes[0];
  params.depth = x_argument.sizes[1];
  params.cols = weight_argument.sizes[0];
  check_shape(op, weight_argument, {params.cols, params.depth}, "(out_features, in_features)");
  params.x = matrix_view(x_argument);
  params.weight = matrix_view(weight_argument);
  if (bias.has_value()) {
    const Argument bias_argument("bias", *bias);
    check_same_dtype(op, bias_argument, x_argument);
    check_same_device(op, bias_argument, x_argument);
    check_shape(op, bias_argument, {params.cols}, "(out_features,)");
    check_last_dim_contiguous(op, bias_argument);
    params.bias = input_data(*bias);
  }
  Tensor y = empty_like_device(x, x_argument.dtype, {params.rows, params.cols});
  params.y = output_data(y);
  check(cpu::run_batch_invariant_linear(params, torch_threads()), op);
  return y;
}

Tensor few_row_linear(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  return few_row_linear_of("few_row_linear", x, weights, biases);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("batch_invariant_linear", TORCH_BOX(&flagattn::batch_invariant_linear));
  m.impl("few_row_linear", TORCH_BOX(&flagattn::few_row_linear));
}
