// swiglu and its gradient on the CPU.
#include <torch/csrc/stable/library.h>

#include "activation/cpu/activation.h"
#include "torch/activation_args.h"
#include "torch/executor.h"

namespace flagattn {
namespace {

Status run(const SwigluParams& params, const Tensor&) { return cpu::run_swiglu(params, torch_threads()); }
Status run_backward(const SwigluBackwardParams& params, const Tensor&) {
  return cpu::run_swiglu_backward(params, torch_threads());
}

Tensor swiglu(const Tensor& gate, const Tensor& up) { return swiglu_by(run, gate, up); }

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  return swiglu_backward_by(run_backward, dy, gate, up);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("swiglu", TORCH_BOX(&flagattn::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&flagattn::swiglu_backward));
}
