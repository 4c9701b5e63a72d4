// The arguments that all cross-entropy ops share: checked, and written into params. Serves CPU and CUDA.
#pragma once

#include <cmath>
#include <optional>
#include <tuple>

#include "loss/params.h"
#include "torch/strided_rows.h"

namespace flagattn {

using LossTensors = std::tuple<Tensor, Tensor, Tensor>;

inline const float* check_per_row(const char* op, const Argument& argument, int64_t rows) {
  check_dtype(op, argument, ScalarType::Float);
  check(argument.tensor.numel() == rows && argument.tensor.is_contiguous(), op, argument.name, " has shape ",
        text_of(argument.sizes), "; it must be contiguous with ", rows, rows == 1 ? " element." : " elements.");
  return static_cast<const float*>(input_data(argument.tensor));
}

inline LossRows loss_rows(const char* op, const Argument& x, int64_t classes, const Tensor& targets,
                          const std::optional<Tensor>& token_weights, int64_t ignore_index, int64_t reduction,
                          double softcap, double z_loss, double label_smoothing) {
  const Argument targets_argument("targets", targets);
  LossRows in;
  in.rows = rows_by_cols(x).rows;
  in.classes = classes;
  check_dtype(op, targets_argument, ScalarType::Long);
  check_same_device(op, targets_argument, x);
  check(targets.numel() == in.rows && targets.is_contiguous(), op, "targets has shape ",
        text_of(targets_argument.sizes), "; it must be contiguous with one target for each of the ", in.rows, " rows.");
  in.targets = static_cast<const int64_t*>(input_data(targets));
  if (token_weights.has_value()) in.weights = check_per_row(op, {"token_weights", *token_weights}, in.rows);
  check(0 <= reduction && reduction <= 2, op, "reduction is ", reduction,
        "; it must be 0 (none), 1 (mean) or 2 (sum).");
  check(std::isfinite(static_cast<float>(z_loss)), op, "z_loss is ", z_loss, "; it must be finite in fp32.");
  in.options = {.ignore_index = ignore_index,
                .reduction = static_cast<Reduction>(reduction),
                .softcap = checked_softcap(op, softcap),
                .z_loss = static_cast<float>(z_loss),
                .label_smoothing = static_cast<float>(label_smoothing)};
  return in;
}

// The loss, lse, and both parts of lse as (2, rows).
inline LossTensors empty_results(const Argument& x, const LossRows& in, LossResults* out) {
  const Sizes leading(x.sizes.data(), x.sizes.size() - 1);
  const bool reduces = in.options.reduction != Reduction::kNone;
  Tensor loss = empty_like_device(x.tensor, ScalarType::Float, reduces ? Sizes(x.sizes.data(), size_t{0}) : leading);
  Tensor lse = empty_like_device(x.tensor, ScalarType::Float, leading);
  Tensor parts = empty_like_device(x.tensor, ScalarType::Float, {2, in.rows});
  out->loss = static_cast<float*>(output_data(loss));
  out->lse = static_cast<float*>(output_data(lse));
  out->maximum = static_cast<float*>(output_data(parts));
  out->sum = out->maximum + in.rows;
  return {std::move(loss), std::move(lse), std::move(parts)};
}

inline LossUpstream upstream_of(const char* op, const LossRows& in, const std::optional<Tensor>& dloss,
                                const std::optional<Tensor>& dlse, const Tensor& lse_parts) {
  LossUpstream upstream;
  const int64_t losses = in.options.reduction == Reduction::kNone ? in.rows : 1;
  if (dloss.has_value()) upstream.dloss = check_per_row(op, {"dloss", *dloss}, losses);
  if (dlse.has_value()) upstream.dlse = check_per_row(op, {"dlse", *dlse}, in.rows);
  upstream.maximum = check_per_row(op, {"lse_parts", lse_parts}, 2 * in.rows);
  upstream.sum = upstream.maximum + in.rows;
  return upstream;
}

inline StridedRows contiguous_rows(const Tensor& tensor, int64_t cols) {
  StridedRows rows;
  rows.data = output_data(tensor);
  rows.strides[0] = cols;
  return rows;
}

}  // namespace flagattn
