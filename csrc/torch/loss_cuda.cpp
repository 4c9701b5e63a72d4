// cross_entropy and its gradient on CUDA, on torch's stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "loss/cuda/sm80/loss.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"
#include "torch/loss_args.h"

namespace flagattn {
namespace {

// Goes back to torch's allocator before the kernels have run, which then reuses it on this stream only.
Tensor doubles(const Tensor& like, int64_t count) { return empty_like_device(like, ScalarType::Double, {count}); }

LossTensors cross_entropy(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& token_weights,
                          int64_t ignore_index, int64_t reduction, double softcap, double z_loss,
                          double label_smoothing) {
  constexpr const char* op = "cross_entropy";
  const Argument x("logits", logits);
  CrossEntropyParams params;
  params.dtype = check_floating(op, x);
  params.logits = strided_rows(op, x);
  params.in = loss_rows(op, x, rows_by_cols(x).cols, targets, token_weights, ignore_index, reduction, softcap, z_loss,
                        label_smoothing);
  check_targets_if_asked(op, params.in, targets);
  const torch::stable::accelerator::DeviceGuard on_device(logits.get_device_index());
  LossTensors results = empty_results(x, params.in, &params.out);
  const Tensor scratch = doubles(logits, sm80::cross_entropy_scratch(params.in));
  check(sm80::run_cross_entropy(params, static_cast<double*>(output_data(scratch)),
                                current_cuda_stream(logits.get_device_index())),
        op);
  return results;
}

void run_backward(const char* op, const CrossEntropyBackwardParams& params, const Tensor& logits) {
  const Tensor scratch = doubles(logits, sm80::cross_entropy_backward_scratch(params.in));
  check(sm80::run_cross_entropy_backward(params, static_cast<double*>(output_data(scratch)),
                                         current_cuda_stream(logits.get_device_index())),
        op);
}

Tensor cross_entropy_backward(const std::optional<Tensor>& dloss, const std::optional<Tensor>& dlse,
                              const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& token_weights,
                              const Tensor& lse_parts, int64_t ignore_index, int64_t reduction, double softcap,
                              double z_loss, double label_smoothing) {
  constexpr const char* op = "cross_entropy_backward";
  const Argument x("logits", logits);
  CrossEntropyBackwardParams params = loss_backward_params(op, dloss, dlse, x, targets, token_weights, lse_parts,
                                                           ignore_index, reduction, softcap, z_loss, label_smoothing);
  check_targets_if_asked(op, params.in, targets);
  const torch::stable::accelerator::DeviceGuard on_device(logits.get_device_index());
  Tensor dlogits = empty_like_device(logits, x.dtype, x.sizes);
  params.dlogits = contiguous_rows(dlogits, params.in.classes);
  run_backward(op, params, logits);
  return dlogits;
}

void cross_entropy_backward_inplace(const std::optional<Tensor>& dloss, const std::optional<Tensor>& dlse,
                                    const Tensor& logits, const Tensor& targets,
                                    const std::optional<Tensor>& token_weights, const Tensor& lse_parts,
                                    int64_t ignore_index, int64_t reduction, double softcap, double z_loss,
                                    double label_smoothing) {
  constexpr const char* op = "cross_entropy_backward_";
  const Argument x("logits", logits);
  CrossEntropyBackwardParams params = loss_backward_params(op, dloss, dlse, x, targets, token_weights, lse_parts,
                                                           ignore_index, reduction, softcap, z_loss, label_smoothing);
  check_targets_if_asked(op, params.in, targets);
  const torch::stable::accelerator::DeviceGuard on_device(logits.get_device_index());
  params.dlogits = params.logits;
  run_backward(op, params, logits);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("cross_entropy", TORCH_BOX(&flagattn::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&flagattn::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&flagattn::cross_entropy_backward_inplace));
}
