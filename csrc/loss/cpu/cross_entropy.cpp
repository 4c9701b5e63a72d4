// Cross-entropy over given logits: a row is one piece of work, cut into segments.
#include <algorithm>
#include <vector>

#include "arch/cpu_level.h"
#include "loss/cpu/loss.h"
#include "loss/cpu/row_terms.h"

namespace flagattn::cpu {
namespace {

constexpr int64_t kElementsPerItem = 32 * 1024;

const void* element(const StridedRows& rows, DType dtype, int64_t row, int64_t column) {
  if (size_of(dtype) == 4) return row_of<const float>(rows, row) + column;
  return row_of<const uint16_t>(rows, row) + column;
}

template <typename Body>
void for_each_row(const ParallelFor& parallel, const LossRows& in, Body&& body) {
  const int64_t rows_per_item = std::max<int64_t>(1, kElementsPerItem / std::max<int64_t>(1, in.classes));
  for_each_item(
      parallel, (in.rows + rows_per_item - 1) / rows_per_item, [] { return std::vector<SegmentSummary>(); },
      [&](int64_t item, std::vector<SegmentSummary>& scratch) {
        const int64_t end = std::min(in.rows, (item + 1) * rows_per_item);
        for (int64_t row = item * rows_per_item; row < end; ++row) body(row, scratch);
      });
}

}  // namespace

const LossKernels& loss_kernels() {
  switch (without_tiles(cpu_level().level)) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::loss_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::loss_kernels;
#endif
    default:
      return scalar::loss_kernels;
  }
}

Status run_cross_entropy(const CrossEntropyParams& params, const ParallelFor& parallel) {
  const LossRows& in = params.in;
  if (Status status = check_targets(in); !status.ok()) return status;
  const LossKernels& kernels = loss_kernels();
  const LossOptions& options = in.options;
  std::vector<double> losses(in.rows);
  for_each_row(parallel, in, [&](int64_t row, std::vector<SegmentSummary>& segments) {
    if (!is_kept(in, row)) return skip_row(row, params.out);
    segments.clear();
    for (int64_t begin = 0; begin < in.classes; begin += kLossSegment) {
      segments.push_back(kernels.summarise(params.dtype, element(params.logits, params.dtype, row, begin),
                                           std::min(kLossSegment, in.classes - begin), options.softcap,
                                           options.label_smoothing != 0.0f));
    }
    RowSummary summary;
    absorb(summary, segments.data(), static_cast<int64_t>(segments.size()), 1);
    const float target_logit =
        kernels.capped(params.dtype, element(params.logits, params.dtype, row, in.targets[row]), options.softcap);
    losses[row] = finish_row(in, row, summary, target_logit, params.out);
  });
  reduce_losses(in, losses, divisor_of(in), params.out);
  return Status::success();
}

Status run_cross_entropy_backward(const CrossEntropyBackwardParams& params, const ParallelFor& parallel) {
  const LossRows& in = params.in;
  if (Status status = check_targets(in); !status.ok()) return status;
  const LossKernels& kernels = loss_kernels();
  const double divisor = divisor_of(in);
  for_each_row(parallel, in, [&](int64_t row, std::vector<SegmentSummary>&) {
    void* dx = const_cast<void*>(element(params.dlogits, params.dtype, row, 0));
    if (!is_kept(in, row)) {
      std::fill_n(static_cast<char*>(dx), in.classes * size_of(params.dtype), char{0});
      return;
    }
    const RowGradient gradient = row_gradient(in, row, params.upstream, divisor);
    kernels.gradient(params.dtype, element(params.logits, params.dtype, row, 0), dx, in.classes, gradient,
                     in.targets[row], in.options.softcap);
  });
  return Status::success();
}

}  // namespace flagattn::cpu
