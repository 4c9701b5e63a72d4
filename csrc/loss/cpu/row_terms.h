// What cross-entropy does once per row, in double: sums of segments, the loss, and what its gradient is multiplied by.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "loss/cpu/loss_isa.h"
#include "loss/params.h"
#include "loss/targets.h"

namespace flagattn::cpu {

inline float weight_of(const LossRows& in, int64_t row) { return in.weights == nullptr ? 1.0f : in.weights[row]; }

inline bool is_kept(const LossRows& in, int64_t row) {
  return in.targets[row] != in.options.ignore_index && weight_of(in, row) != 0.0f;
}

// What the sum of losses is divided by; 1 where nothing is to be divided, or nothing is there.
inline double divisor_of(const LossRows& in) {
  if (in.options.reduction != Reduction::kMean) return 1.0;
  double sum = 0.0;
  bool any = false;
  for (int64_t row = 0; row < in.rows; ++row) {
    if (!is_kept(in, row)) continue;
    sum += weight_of(in, row);
    any = true;
  }
  return any ? sum : 1.0;
}

struct RowSummary {
  float maximum = -INFINITY;
  double sum_exp = 0.0;
  double sum = 0.0;
};

// Adds the summaries of a row's next segments, `stride` apart, one by one: how many come at a time changes no bits.
inline void absorb(RowSummary& row, const SegmentSummary* segments, int64_t count, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    const SegmentSummary& segment = segments[i * stride];
    const float maximum = std::fmax(row.maximum, segment.maximum);
    const auto rescaled = [maximum](double sum_exp, float from) {
      // What holds nothing but -inf adds nothing; a NaN shows in its sum.
      return sum_exp == 0.0 ? 0.0 : sum_exp * std::exp(static_cast<double>(from) - maximum);
    };
    row.sum_exp = rescaled(row.sum_exp, row.maximum) + rescaled(segment.sum_exp, segment.maximum);
    row.sum += segment.sum;
    row.maximum = maximum;
  }
}

// Writes everything but the loss of a kept row, and returns its weighted loss.
inline double finish_row(const LossRows& in, int64_t row, const RowSummary& summary, float target_logit,
                         const LossResults& out) {
  const LossOptions& options = in.options;
  const double log_sum = std::log(summary.sum_exp);
  const double lse = summary.maximum + log_sum;
  out.maximum[row] = summary.maximum;
  out.sum[row] = static_cast<float>(summary.sum_exp);
  out.lse[row] = static_cast<float>(lse);
  double loss = log_sum + (static_cast<double>(summary.maximum) - target_logit);
  if (options.label_smoothing != 0.0f) {
    const double uniform = lse - summary.sum / static_cast<double>(in.classes);
    loss += options.label_smoothing * (uniform - loss);
  }
  if (options.z_loss != 0.0f) loss += options.z_loss * lse * lse;
  return weight_of(in, row) * loss;
}

inline void skip_row(int64_t row, const LossResults& out) {
  out.maximum[row] = out.lse[row] = 0.0f;
  out.sum[row] = 1.0f;
}

// `dloss` is the gradient of the row's weighted and reduced loss by its plain one, `dlse` that of its lse.
inline RowGradient row_gradient(const LossRows& in, float maximum, float sum, double dloss, double dlse) {
  const LossOptions& options = in.options;
  double share = dloss + dlse;
  if (options.z_loss != 0.0f) share += dloss * 2.0 * options.z_loss * (maximum + std::log(static_cast<double>(sum)));
  RowGradient gradient;
  gradient.maximum = maximum;
  gradient.scale = static_cast<float>(share / sum);
  gradient.smoothing = static_cast<float>(dloss * options.label_smoothing / static_cast<double>(in.classes));
  gradient.target_share = static_cast<float>(dloss * (1.0 - options.label_smoothing));
  return gradient;
}

// The same from gradients that arrive at the results of the forward.
inline RowGradient row_gradient(const LossRows& in, int64_t row, const LossUpstream& upstream, double divisor) {
  double dloss = 0.0;
  if (upstream.dloss != nullptr) {
    dloss = upstream.dloss[in.options.reduction == Reduction::kNone ? row : 0] * (weight_of(in, row) / divisor);
  }
  const double dlse = upstream.dlse == nullptr ? 0.0 : upstream.dlse[row];
  return row_gradient(in, upstream.maximum[row], upstream.sum[row], dloss, dlse);
}

// Puts the rows' weighted losses, 0 for those left out, where the caller wants them. They are added in order.
inline void reduce_losses(const LossRows& in, const std::vector<double>& losses, double divisor,
                          const LossResults& out) {
  if (in.options.reduction == Reduction::kNone) {
    for (int64_t row = 0; row < in.rows; ++row) out.loss[row] = static_cast<float>(losses[row]);
    return;
  }
  double sum = 0.0;
  for (const double loss : losses) sum += loss;
  out.loss[0] = static_cast<float>(sum / divisor);
}

}  // namespace flagattn::cpu
