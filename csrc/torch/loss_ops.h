// The cross-entropy ops of given logits as their schemas spell them: arguments gathered and checked, results
// allocated, for any device to fill.
#pragma once

#include "torch/loss_args.h"

namespace flagattn {

// Device::check_targets(op, in, targets): their values, where the kernels do not look themselves.
// Device::forward(op, params, logits), Device::backward(op, params, logits): fill what params point to.
template <typename Device>
struct CrossEntropyOps {
  using OptionalTensor = std::optional<Tensor>;

  static LossTensors cross_entropy(const Tensor& logits, const Tensor& targets, const OptionalTensor& token_weights,
                                   int64_t ignore_index, int64_t reduction, double softcap, double z_loss,
                                   double label_smoothing) {
    constexpr const char* op = "cross_entropy";
    auto params = checked_params<CrossEntropyParams>(op, logits, targets, token_weights, ignore_index, reduction,
                                                     softcap, z_loss, label_smoothing);
    Device::check_targets(op, params.in, targets);
    LossTensors results = empty_results({"logits", logits}, params.in, &params.out);
    Device::forward(op, params, logits);
    return results;
  }

  static Tensor cross_entropy_backward(const OptionalTensor& dloss, const OptionalTensor& dlse, const Tensor& logits,
                                       const Tensor& targets, const OptionalTensor& token_weights,
                                       const Tensor& lse_parts, int64_t ignore_index, int64_t reduction, double softcap,
                                       double z_loss, double label_smoothing) {
    constexpr const char* op = "cross_entropy_backward";
    CrossEntropyBackwardParams params =
        checked_backward_params(op, dloss, dlse, logits, targets, token_weights, lse_parts, ignore_index, reduction,
                                softcap, z_loss, label_smoothing);
    Tensor dlogits = empty_like_device(logits, logits.scalar_type(), logits.sizes());
    params.dlogits = contiguous_rows(dlogits, params.in.classes);
    Device::backward(op, params, logits);
    return dlogits;
  }

  static void cross_entropy_backward_inplace(const OptionalTensor& dloss, const OptionalTensor& dlse,
                                             const Tensor& logits, const Tensor& targets,
                                             const OptionalTensor& token_weights, const Tensor& lse_parts,
                                             int64_t ignore_index, int64_t reduction, double softcap, double z_loss,
                                             double label_smoothing) {
    constexpr const char* op = "cross_entropy_backward_";
    CrossEntropyBackwardParams params =
        checked_backward_params(op, dloss, dlse, logits, targets, token_weights, lse_parts, ignore_index, reduction,
                                softcap, z_loss, label_smoothing);
    params.dlogits = params.logits;
    Device::backward(op, params, logits);
  }

  template <typename Library>
  static void add_to(Library& library) {
    library.impl("cross_entropy", TORCH_BOX(&CrossEntropyOps::cross_entropy));
    library.impl("cross_entropy_backward", TORCH_BOX(&CrossEntropyOps::cross_entropy_backward));
    library.impl("cross_entropy_backward_", TORCH_BOX(&CrossEntropyOps::cross_entropy_backward_inplace));
  }

 private:
  // What both directions know of logits and targets.
  template <typename Params>
  static Params checked_params(const char* op, const Tensor& logits, const Tensor& targets,
                               const OptionalTensor& token_weights, int64_t ignore_index, int64_t reduction,
                               double softcap, double z_loss, double label_smoothing) {
    const Argument x("logits", logits);
    Params params;
    params.dtype = check_floating(op, x);
    params.logits = strided_rows(op, x);
    params.in = loss_rows(op, x, rows_by_cols(x).cols, targets, token_weights, ignore_index, reduction, softcap, z_loss,
                          label_smoothing);
    return params;
  }

  // All but dlogits.
  static CrossEntropyBackwardParams checked_backward_params(const char* op, const OptionalTensor& dloss,
                                                            const OptionalTensor& dlse, const Tensor& logits,
                                                            const Tensor& targets, const OptionalTensor& token_weights,
                                                            const Tensor& lse_parts, int64_t ignore_index,
                                                            int64_t reduction, double softcap, double z_loss,
                                                            double label_smoothing) {
    auto params = checked_params<CrossEntropyBackwardParams>(op, logits, targets, token_weights, ignore_index,
                                                             reduction, softcap, z_loss, label_smoothing);
    params.upstream = upstream_of(op, params.in, dloss, dlse, lse_parts);
    Device::check_targets(op, params.in, targets);
    return params;
  }
};

}  // namespace flagattn
