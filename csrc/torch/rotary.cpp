// apply_rotary and its in-place form on the CPU: check, allocate, fill params, launch.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "rotary/cpu/rotary.h"
#include "torch/executor.h"
#include "torch/rotary_args.h"

namespace flagattn {
namespace {

// Everything but y.
RotaryParams checked_params(const RotaryArgs& args, const std::optional<Tensor>& positions) {
  RotaryParams params = checked_rotary_params(args);
  if (positions.has_value()) {
    fill_positions(args.op, {"positions", *positions}, {"x", args.x}, params);
  } else {
    check(params.seqlen <= params.num_positions, args.op, "x has ", params.seqlen, " rows, but cos and sin have ",
          params.num_positions, " positions; they must be as many or more.");
  }
  return params;
}

Tensor apply_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& positions,
                    bool interleaved, bool conjugate) {
  constexpr const char* op = "apply_rotary";
  RotaryParams params = checked_params({op, x, cos, sin, interleaved, conjugate}, positions);
  Tensor y = empty_like_device(x, x.scalar_type(), x.sizes());
  params.y = rotary_operand({"y", y}, output_data(y));
  check(cpu::run_rotary(params, torch_threads()), op);
  return y;
}

void apply_rotary_in_place(const Tensor& x, const Tensor& cos, const Tensor& sin,
                           const std::optional<Tensor>& positions, bool interleaved, bool conjugate) {
  constexpr const char* op = "apply_rotary_";
  RotaryParams params = checked_params({op, x, cos, sin, interleaved, conjugate}, positions);
  const Argument argument("x", x);
  for (int64_t dim = 0; dim < argument.dim(); ++dim) {
    check(argument.strides[dim] != 0 || argument.sizes[dim] <= 1, op, "x of shape ", text_of(argument.sizes),
          " is expanded over dimension ", dim, "; elements that share memory cannot be rotated in place.");
  }
  params.y = rotary_operand(argument, output_data(x));
  check(cpu::run_rotary(params, torch_threads()), op);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("apply_rotary", TORCH_BOX(&flagattn::apply_rotary));
  m.impl("apply_rotary_", TORCH_BOX(&flagattn::apply_rotary_in_place));
}
