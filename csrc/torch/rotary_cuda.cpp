// apply_rotary and its in-place form on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "rotary/cuda/sm80/rotary.h"
#include "torch/cuda_stream.h"
#include "torch/rotary_op.h"

namespace flagattn {
namespace {

Status run(const RotaryParams& params, const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard on_device(x.get_device_index());
  return sm80::run_rotary(params, current_cuda_stream(x.get_device_index()));
}

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

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("apply_rotary", TORCH_BOX(&flagattn::apply_rotary));
  m.impl("apply_rotary_", TORCH_BOX(&flagattn::apply_rotary_in_place));
}
