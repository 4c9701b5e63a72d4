// swiglu and its gradient on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "activation/cuda/sm80/activation.h"
#include "torch/activation_args.h"
#include "torch/cuda_stream.h"

namespace flagattn {
namespace {

Status run(const SwigluParams& params, const Tensor& gate) {
  const torch::stable::accelerator::DeviceGuard on_device(gate.get_device_index());
  return sm80::run_swiglu(params, current_cuda_stream(gate.get_device_index()));
}
Status run_backward(const SwigluBackwardParams& params, const Tensor& gate) {
  const torch::stable::accelerator::DeviceGuard on_device(gate.get_device_index());
  return sm80::run_swiglu_backward(params, current_cuda_stream(gate.get_device_index()));
}

Tensor swiglu(const Tensor& gate, const Tensor& up) { return swiglu_by(run, gate, up); }

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  return swiglu_backward_by(run_backward, dy, gate, up);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("swiglu", TORCH_BOX(&flagattn::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&flagattn::swiglu_backward));
}
