// apply_rotary and its in-place form on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "rotary/cuda/sm80/rotary.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"
#include "torch/rotary_op.h"

namespace flagattn {
namespace {

Status run(const RotaryParams& params, const Tensor& x, const std::optional<Tensor>& positions) {
  if (Status status = check_positions_if_asked(params, positions); !status.ok()) return status;
  const torch::stable::accelerator::DeviceGuard on_device(x.get_device_index());
  return sm80::run_rotary(params, current_cuda_stream(x.get_device_index()));
}

Tensor apply_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& positions,
                    bool interleaved, bool conjugate) {
  const auto checked = [&](const RotaryParams& params, const Tensor& on) { return run(params, on, positions); };
  return apply_rotary_by(checked, x, cos, sin, positions, interleaved, conjugate);
}

void apply_rotary_in_place(const Tensor& x, const Tensor& cos, const Tensor& sin,
                           const std::optional<Tensor>& positions, bool interleaved, bool conjugate) {
  const auto checked = [&](const RotaryParams& params, const Tensor& on) { return run(params, on, positions); };
  apply_rotary_in_place_by(checked, x, cos, sin, positions, interleaved, conjugate);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("apply_rotary", TORCH_BOX(&flagattn::apply_rotary));
  m.impl("apply_rotary_", TORCH_BOX(&flagattn::apply_rotary_in_place));
}
