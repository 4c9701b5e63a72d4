// rms_norm, add_rms_norm and their gradient for any device: check, allocate, fill params; `run` launches.
#pragma once

#include <optional>
#include <tuple>

#include "norm/params.h"
#include "torch/strided_rows.h"

namespace flagattn {

inline DType check_norm_weight(const char* op, const Argument& weight, const Argument& x) {
  const DType dtype = check_floating(op, weight);
  check_same_device(op, weight, x);
  check_shape(op, weight, {x.sizes[x.dim() - 1]}, "(cols,) of the rows it scales");
  check_last_dim_contiguous(op, weight);
  return dtype;
}

// Everything but the residual and its sum.
inline RmsNormParams rms_norm_params(const char* op, const Argument& x, const Argument& weight, double eps,
                                     double offset, bool round_normalised) {
  RmsNormParams params;
  params.dtype = check_floating(op, x);
  params.x = strided_rows(op, x);
  params.weight_dtype = check_norm_weight(op, weight, x);
  const auto [rows, cols] = rows_by_cols(x);
  params.rows = rows;
  params.cols = cols;
  params.weight = input_data(weight.tensor);
  params.eps = static_cast<float>(eps);
  params.offset = static_cast<float>(offset);
  params.round_normalised = round_normalised;
  return params;
}

inline Tensor empty_rstd(const Argument& x) {
  return empty_like_device(x.tensor, ScalarType::Float, Sizes(x.sizes.data(), x.sizes.size() - 1));
}

template <typename Run>
std::tuple<Tensor, Tensor> rms_norm_by(Run run, const Tensor& x, const Tensor& weight, double eps, double offset,
                                       bool round_normalised) {
  constexpr const char* op = "rms_norm";
  const Argument x_argument("x", x);
  RmsNormParams params = rms_norm_params(op, x_argument, {"weight", weight}, eps, offset, round_normalised);
  Tensor y = empty_like_device(x, x_argument.dtype, x_argument.sizes);
  Tensor rstd = empty_rstd(x_argument);
  params.y = output_data(y);
  params.rstd = static_cast<float*>(output_data(rstd));
  check(run(params, x), op);
  return {std::move(y), std::move(rstd)};
}

template <typename Run>
std::tuple<Tensor, Tensor, Tensor> add_rms_norm_by(Run run, const Tensor& x, const Tensor& residual,
                                                   const Tensor& weight, double eps, double offset,
                                                   bool round_normalised) {
  constexpr const char* op = "add_rms_norm";
  const Argument x_argument("x", x), residual_argument("residual", residual);
  check_like(op, residual_argument, x_argument);
  RmsNormParams params = rms_norm_params(op, x_argument, {"weight", weight}, eps, offset, round_normalised);
  params.residual = strided_rows(op, residual_argument);
  Tensor y = empty_like_device(x, x_argument.dtype, x_argument.sizes);
  Tensor summed = empty_like_device(x, x_argument.dtype, x_argument.sizes);
  Tensor rstd = empty_rstd(x_argument);
  params.y = output_data(y);
  params.summed = output_data(summed);
  params.rstd = static_cast<float*>(output_data(rstd));
  check(run(params, x), op);
  return {std::move(y), std::move(summed), std::move(rstd)};
}

// `s` is what the forward normalised: x, or x + residual. dweight is empty unless asked for.
template <typename Run>
std::tuple<Tensor, Tensor> rms_norm_backward_by(Run run, const Tensor& dy, const std::optional<Tensor>& dsummed,
                                                const Tensor& s, const Tensor& weight, const Tensor& rstd,
                                                double offset, bool needs_dweight) {
  constexpr const char* op = "rms_norm_backward";
  const Argument s_argument("s", s), dy_argument("dy", dy), weight_argument("weight", weight),
      rstd_argument("rstd", rstd);
  RmsNormBackwardParams params;
  params.dtype = check_floating(op, s_argument);
  check_like(op, dy_argument, s_argument);
  params.s = strided_rows(op, s_argument);
  params.dy = strided_rows(op, dy_argument);
  if (dsummed.has_value()) {
    const Argument dsummed_argument("dsummed", *dsummed);
    check_like(op, dsummed_argument, s_argument);
    params.dsummed = strided_rows(op, dsummed_argument);
  }
  params.weight_dtype = check_norm_weight(op, weight_argument, s_argument);
  const auto [rows, cols] = rows_by_cols(s_argument);
  params.rows = rows;
  params.cols = cols;
  check_dtype(op, rstd_argument, ScalarType::Float);
  check_same_device(op, rstd_argument, s_argument);
  check(rstd.numel() == rows && rstd.is_contiguous(), op, "rstd has shape ", text_of(rstd_argument.sizes),
        "; it must be what rms_norm returned for this input.");
  params.rstd = static_cast<const float*>(input_data(rstd));
  params.weight = input_data(weight);
  params.offset = static_cast<float>(offset);

  Tensor ds = empty_like_device(s, s_argument.dtype, s_argument.sizes);
  Tensor dweight = empty_like_device(weight, weight_argument.dtype, {needs_dweight ? cols : 0});
  params.ds = output_data(ds);
  if (needs_dweight) params.dweight = output_data(dweight);
  check(run(params, s), op);
  return {std::move(ds), std::move(dweight)};
}

}  // namespace flagattn
