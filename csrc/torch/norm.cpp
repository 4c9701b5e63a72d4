// rms_norm, add_rms_norm and their gradient on the CPU.
#include <torch/csrc/stable/library.h>

#include "norm/cpu/norm.h"
#include "torch/executor.h"
#include "torch/norm_args.h"

namespace flagattn {
namespace {

Status run(const RmsNormParams& params, const Tensor&) { return cpu::run_rms_norm(params, torch_threads()); }
Status run_backward(const RmsNormBackwardParams& params, const Tensor&) {
  return cpu::run_rms_norm_backward(params, torch_threads());
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps, double offset,
                                    bool round_normalised) {
  return rms_norm_by(run, x, weight, eps, offset, round_normalised);
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                                double eps, double offset, bool round_normalised) {
  return add_rms_norm_by(run, x, residual, weight, eps, offset, round_normalised);
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const std::optional<Tensor>& dsummed, const Tensor& s,
                                             const Tensor& weight, const Tensor& rstd, double offset,
                                             bool needs_dweight) {
  return rms_norm_backward_by(run_backward, dy, dsummed, s, weight, rstd, offset, needs_dweight);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&flagattn::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&flagattn::add_rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&flagattn::rms_norm_backward));
}
