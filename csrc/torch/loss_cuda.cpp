// cross_entropy and its gradient on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "loss/cuda/sm80/loss.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"
#include "torch/loss_ops.h"

namespace flagattn {
namespace {

struct OnCuda {
  static void check_targets(const char* op, const LossRows& in, const Tensor& targets) {
    check_targets_if_asked(op, in, targets);
  }

  static void forward(const char* op, const CrossEntropyParams& params, const Tensor& logits) {
    run(op, params, logits, sm80::cross_entropy_scratch(params.in), sm80::run_cross_entropy);
  }

  static void backward(const char* op, const CrossEntropyBackwardParams& params, const Tensor& logits) {
    run(op, params, logits, sm80::cross_entropy_backward_scratch(params.in), sm80::run_cross_entropy_backward);
  }

 private:
  // The scratch goes back to torch's allocator before the kernels have run, which then reuses it on this stream only.
  template <typename Params>
  static void run(const char* op, const Params& params, const Tensor& logits, int64_t doubles,
                  Status (*launch)(const Params&, double*, Stream)) {
    const torch::stable::accelerator::DeviceGuard on_device(logits.get_device_index());
    const Tensor scratch = empty_like_device(logits, ScalarType::Double, {doubles});
    check(launch(params, static_cast<double*>(output_data(scratch)), current_cuda_stream(logits.get_device_index())),
          op);
  }
};

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) { flagattn::CrossEntropyOps<flagattn::OnCuda>::add_to(m); }
