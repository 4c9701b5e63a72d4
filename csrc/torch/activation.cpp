// swiglu and its gradient on the CPU: check, allocate, fill params, launch.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "activation/cpu/activation.h"
#include "torch/executor.h"
#include "torch/strided_rows.h"

namespace flagattn {
namespace {

Tensor swiglu(const Tensor& gate, const Tensor& up) {
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
  check(cpu::run_swiglu(params, torch_threads()), op);
  return y;
}

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up) {
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
  check(cpu::run_swiglu_backward(params, torch_threads()), op);
  return {std::move(dgate), std::move(dup)};
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("swiglu", TORCH_BOX(&flagattn::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&flagattn::swiglu_backward));
}
