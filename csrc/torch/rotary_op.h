// apply_rotary and its in-place form for any device: check, allocate, fill params; `run` launches.
#pragma once

#include <optional>

#include "torch/rotary_args.h"

namespace flagattn {

// Everything but y.
inline RotaryParams rotary_params(const RotaryArgs& args, const std::optional<Tensor>& positions) {
  RotaryParams params = checked_rotary_params(args);
  if (positions.has_value()) {
    fill_positions(args.op, {"positions", *positions}, {"x", args.x}, params);
  } else {
    check(params.seqlen <= params.num_positions, args.op, "x has ", params.seqlen, " rows, but cos and sin have ",
          params.num_positions, " positions; they must be as many or more.");
  }
  return params;
}

template <typename Run>
Tensor apply_rotary_by(Run run, const Tensor& x, const Tensor& cos, const Tensor& sin,
                       const std::optional<Tensor>& positions, bool interleaved, bool conjugate) {
  constexpr const char* op = "apply_rotary";
  RotaryParams params = rotary_params({op, x, cos, sin, interleaved, conjugate}, positions);
  Tensor y = empty_like_device(x, x.scalar_type(), x.sizes());
  params.y = rotary_operand({"y", y}, output_data(y));
  check(run(params, x), op);
  return y;
}

template <typename Run>
void apply_rotary_in_place_by(Run run, const Tensor& x, const Tensor& cos, const Tensor& sin,
                              const std::optional<Tensor>& positions, bool interleaved, bool conjugate) {
  constexpr const char* op = "apply_rotary_";
  RotaryParams params = rotary_params({op, x, cos, sin, interleaved, conjugate}, positions);
  const Argument argument("x", x);
  for (int64_t dim = 0; dim < argument.dim(); ++dim) {
    check(argument.strides[dim] != 0 || argument.sizes[dim] <= 1, op, "x of shape ", text_of(argument.sizes),
          " is expanded over dimension ", dim, "; elements that share memory cannot be rotated in place.");
  }
  params.y = rotary_operand(argument, output_data(x));
  check(run(params, x), op);
}

}  // namespace flagattn
