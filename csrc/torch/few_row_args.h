// Linear maps of a few rows on the CPU, side by side: check, allocate, fill params, launch.
#pragma once

#include <span>

#include "linear/cpu/linear.h"
#include "torch/executor.h"
#include "torch/tensor_utils.h"

namespace flagattn {

// What the maps share is `x`'s; they fill the columns of y from params.y_stride on.
inline void add_map(const char* op, const Tensor& weight, const Tensor* bias, const Argument& x,
                    FewRowsParams& params) {
  const Argument weight_argument("weights", weight);
  check_same_dtype(op, weight_argument, x);
  check_same_device(op, weight_argument, x);
  check_last_dim_contiguous(op, weight_argument);
  check(weight_argument.dim() == 2, op, "weights has a tensor of shape ", text_of(weight_argument.sizes),
        "; they must be matrices.");
  FewRowsParams::Map& map = params.maps[params.num_maps++];
  map.cols = weight_argument.sizes[0];
  check_shape(op, weight_argument, {map.cols, params.depth}, "(out_features, in_features)");
  map.weight = input_data(weight);
  map.stride = weight_argument.strides[0];
  map.first = params.y_stride;
  params.y_stride += map.cols;
  if (bias == nullptr) return;
  const Argument bias_argument("biases", *bias);
  check_same_dtype(op, bias_argument, x);
  check_same_device(op, bias_argument, x);
  check_last_dim_contiguous(op, bias_argument);
  check_shape(op, bias_argument, {map.cols}, "(out_features,)");
  map.bias = input_data(*bias);
}

inline Tensor few_row_linear_of(const char* op, const Tensor& x, std::span<const Tensor> weights,
                                std::span<const Tensor> biases) {
  const Argument x_argument("x", x);
  FewRowsParams params;
  params.dtype = check_floating(op, x_argument);
  const int64_t dims = x_argument.dim();
  check(dims >= 2 && dims <= 4, op, "x has shape ", text_of(x_argument.sizes),
        "; it must have two to four dimensions.");
  check(dims == 2 || x.is_contiguous(), op, "x of shape ", text_of(x_argument.sizes), " has strides ",
        text_of(x_argument.strides), "; it must be contiguous.");
  check_last_dim_contiguous(op, x_argument);
  int64_t sizes[4];
  params.rows = 1;
  for (int64_t dim = 0; dim < dims - 1; ++dim) params.rows *= sizes[dim] = x_argument.sizes[dim];
  params.depth = x_argument.sizes[dims - 1];
  params.x = input_data(x);
  params.x_stride = dims == 2 ? x_argument.strides[0] : params.depth;
  const auto count = static_cast<int64_t>(weights.size());
  check(count >= 1 && count <= FewRowsParams::kMostMaps, op, "weights has ", count, " tensors; from 1 to ",
        FewRowsParams::kMostMaps, " are supported.");
  check(biases.empty() || biases.size() == weights.size(), op, "biases has ", biases.size(),
        " tensors, but weights has ", count, "; it must have none or as many.");
  for (int64_t m = 0; m < count; ++m) {
    add_map(op, weights[m], biases.empty() ? nullptr : &biases[m], x_argument, params);
  }
  sizes[dims - 1] = params.y_stride;
  Tensor y = empty_like_device(x, x_argument.dtype, Sizes(sizes, dims));
  params.y = output_data(y);
  check(cpu::run_few_row_linear(params, torch_threads()), op);
  return y;
}

}  // namespace flagattn
