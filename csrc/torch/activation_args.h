// swiglu and its gradient for any device: check, allocate, fill params; `run` launches.
#pragma once

#include <tuple>

#include "activation/params.h"
#include "torch/strided_rows.h"

namespace flagattn {

template <typename Run>
Tensor swiglu_by(Run run, const Tensor& gate, const Tensor& up) {
  constexpr const char* op = "swiglu";
  const Argument gate_argument("gate", gate), up_argument("up", up);
  SwigluParams params;
  params.dtype = check_floating(op, gate_argument);
  check_like(op, up_argument, gate_argument);
  params.gate = strided_rows(op, gate_argument);
  params.up = strided_rows(op, up_argument);
  const auto [rows, cols] = rows_by_cols(gate_argument);
  params.rows = rows;
  params.cols = cols;
  Tensor y = empty_like_device(gate, gate_argument.dtype, gate_argument.sizes);
  params.y = output_data(y);
  check(run(params, gate), op);
  return y;
}

template <typename Run>
std::tuple<Tensor, Tensor> swiglu_backward_by(Run run, const Tensor& dy, const Tensor& gate, const Tensor& up) {
  constexpr const char* op = "swiglu_backward";
  const Argument gate_argument("gate", gate), up_argument("up", up), dy_argument("dy", dy);
  SwigluBackwardParams params;
  params.dtype = check_floating(op, gate_argument);
  check_like(op, up_argument, gate_argument);
  check_like(op, dy_argument, gate_argument);
  params.dy = strided_rows(op, dy_argument);
  params.gate = strided_rows(op, gate_argument);
  params.up = strided_rows(op, up_argument);
  const auto [rows, cols] = rows_by_cols(gate_argument);
  params.rows = rows;
  params.cols = cols;
  Tensor dgate = empty_like_device(gate, gate_argument.dtype, gate_argument.sizes);
  Tensor dup = empty_like_device(gate, gate_argument.dtype, gate_argument.sizes);
  params.dgate = output_data(dgate);
  params.dup = output_data(dup);
  check(run(params, gate), op);
  return {std::move(dgate), std::move(dup)};
}

}  // namespace flagattn
