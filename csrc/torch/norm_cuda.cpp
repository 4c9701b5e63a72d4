// rms_norm, add_rms_norm and their gradient on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "norm/cuda/sm80/heuristics.h"
#include "norm/cuda/sm80/norm.h"
#include "torch/cuda_stream.h"
#include "torch/norm_args.h"

namespace flagattn {
namespace {

Status run(const RmsNormParams& params, const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard on_device(x.get_device_index());
  return sm80::run_rms_norm(params, current_cuda_stream(x.get_device_index()));
}

// The scratch memory goes back to torch's allocator before the kernels have run, which then reuses it on this stream
// only.
Status run_backward(RmsNormBackwardParams params, const Tensor& s) {
  const torch::stable::accelerator::DeviceGuard on_device(s.get_device_index());
  const int64_t bytes =
      params.dweight == nullptr ? 0 : sm80::norm_backward_scratch(params.rows, params.cols, params.dtype);
  Tensor scratch = empty_like_device(s, ScalarType::Byte, {bytes});
  params.scratch = output_data(scratch);
  return sm80::run_rms_norm_backward(params, current_cuda_stream(s.get_device_index()));
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

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("rms_norm", TORCH_BOX(&flagattn::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&flagattn::add_rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&flagattn::rms_norm_backward));
}
