// attention_forward and piecewise_forward on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "attention/cuda/sm80/forward.h"
#include "torch/attention_ops.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"

namespace flagattn {
namespace {

struct OnCuda {
  static void check_values(const AttentionArgs& args, const AttentionParams& params) {
    check_values_if_asked(args, params);
  }

  // Rows behind the last packed sequence are the kernel's to clear: their number is known on the device only.
  static void forward(const AttentionArgs& args, const AttentionParams& params, const Tensor&) {
    const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());
    check(sm80::run_attention_forward(params, current_cuda_stream(args.q.get_device_index())), args.op);
  }
};

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) { flagattn::AttentionOps<flagattn::OnCuda>::add_to(m); }
