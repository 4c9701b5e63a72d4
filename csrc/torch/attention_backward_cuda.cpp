// attention_backward and piecewise_backward on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "attention/cuda/sm80/backward.h"
#include "attention/cuda/sm80/checks.h"
#include "torch/attention_backward_ops.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"

namespace flagattn {
namespace {

struct OnCuda {
  static void check_values(const AttentionArgs& args, const AttentionParams& params) {
    check_values_if_asked(args, params);
  }

  // Rows behind the last packed sequence are the kernel's to clear: their number is known on the device only.
  static void backward(const AttentionArgs& args, const BackwardArgs& given, AttentionBackwardParams& params,
                       const Gradients&) {
    const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());

    // autograd hands on any view of a gradient, also one that the kernels cannot read in steps of 16 bytes.
    OptionalTensor own_dout;
    if (!sm80::is_aligned(params.dout, sm80::sizes_of_q(params.forward))) {
      own_dout = empty_gradient(given.dout);
      torch::stable::copy_(*own_dout, given.dout);
      params.dout = heads_input({"dout", *own_dout});
    }
    const int64_t floats = sm80::attention_backward_workspace(params.forward);
    Tensor workspace = empty_like_device(args.q, ScalarType::Float, {floats});
    params.workspace = static_cast<float*>(output_data(workspace));
    check(sm80::run_attention_backward(params, current_cuda_stream(args.q.get_device_index())), args.op);
  }
};

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) { flagattn::AttentionBackwardOps<flagattn::OnCuda>::add_to(m); }
