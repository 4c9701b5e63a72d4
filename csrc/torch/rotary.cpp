// apply_rotary and its in-place form on the CPU.
#include <torch/csrc/stable/library.h>

#include "rotary/cpu/rotary.h"
#include "torch/executor.h"
#include "torch/rotary_op.h"

namespace flagattn {
namespace {

Status run(const RotaryParams& params, const Tensor&) { return cpu::run_rotary(params, torch_threads()); }

Tensor apply_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& positions,
                    bool interleaved, bool conjugate) {
  return apply_rotary_by(run, x, cos, sin, positions, interleaved, conjugate);
}

void apply_rotary_in_place(const Tensor& x, const Tensor& cos, const Tensor& sin,
                           const std::optional<Tensor>& positions, bool interleaved, bool conjugate) {
  apply_rotary_in_place_by(run, x, cos, sin, positions, interleaved, conjugate);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("apply_rotary", TORCH_BOX(&flagattn::apply_rotary));
  m.impl("apply_rotary_", TORCH_BOX(&flagattn::apply_rotary_in_place));
}
