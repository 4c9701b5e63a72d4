#include "norm/cpu/norm.h"

#include <algorithm>
#include <memory>

#include "arch/cpu_level.h"
#include "arch/streaming.h"
#include "norm/cpu/norm_isa.h"

namespace flagattn::cpu {
namespace {

// Rows whose weight gradients are added one after the other; the boundaries depend on nothing, so neither do the bits.
constexpr int64_t kRowsPerPartial = 32;
constexpr int64_t kColumnsPerItem = 512;

const RmsNormKernels& kernels_of(CpuLevel level) {
  switch (without_tiles(level)) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::rms_norm_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::rms_norm_kernels;
#endif
    default:
      return scalar::rms_norm_kernels;
  }
}

template <typename Params>
std::unique_ptr<float[]> gain_of(const RmsNormKernels& kernels, const Params& params) {
  std::unique_ptr<float[]> gain(new float[padded_columns(params.cols)]);
  kernels.load_gain(params.weight, params.weight_dtype, params.offset, params.cols, params.dtype, gain.get());
  return gain;
}

// Calls body(begin, end) for consecutive ranges of `step` within [0, size).
template <typename Body>
void for_each_range(const ParallelFor& parallel, int64_t size, int64_t step, Body&& body) {
  for_each_item(
      parallel, (size + step - 1) / step, [] { return 0; },
      [&](int64_t item, int) { body(item * step, std::min(size, (item + 1) * step)); });
}

int64_t rows_per_item(int64_t rows, int64_t cols, const ParallelFor& parallel) {
  return std::max<int64_t>(1, elements_per_item(rows * cols, parallel) / std::max<int64_t>(1, cols));
}

}  // namespace

Status run_rms_norm(const RmsNormParams& params, const ParallelFor& parallel) {
  const RmsNormKernels& kernels = kernels_of(cpu_level().level);
  const std::unique_ptr<float[]> gain = gain_of(kernels, params);
  const bool stream = streams(params.rows * params.cols * size_of(params.dtype));
  for_each_range(parallel, params.rows, rows_per_item(params.rows, params.cols, parallel),
                 [&](int64_t begin, int64_t end) { kernels.forward_rows(params, gain.get(), begin, end, stream); });
  return Status::success();
}

Status run_rms_norm_backward(const RmsNormBackwardParams& params, const ParallelFor& parallel) {
  const RmsNormKernels& kernels = kernels_of(cpu_level().level);
  const std::unique_ptr<float[]> gain = gain_of(kernels, params);
  const bool stream = streams(params.rows * params.cols * size_of(params.dtype));
  if (params.dweight == nullptr) {
    for_each_range(
        parallel, params.rows, rows_per_item(params.rows, params.cols, parallel),
        [&](int64_t begin, int64_t end) { kernels.backward_rows(params, gain.get(), begin, end, nullptr, stream); });
    return Status::success();
  }

  const int64_t num_partials = (params.rows + kRowsPerPartial - 1) / kRowsPerPartial;
  const std::unique_ptr<float[]> partials(new float[num_partials * padded_columns(params.cols)]);
  for_each_range(parallel, params.rows, kRowsPerPartial, [&](int64_t begin, int64_t end) {
    kernels.backward_rows(params, gain.get(), begin, end,
                          partials.get() + begin / kRowsPerPartial * padded_columns(params.cols), stream);
  });
  for_each_range(parallel, params.cols, kColumnsPerItem, [&](int64_t begin, int64_t end) {
    kernels.reduce_dweight(partials.get(), num_partials, params.cols, begin, end, params.dtype, params.weight_dtype,
                           params.dweight);
  });
  return Status::success();
}

}  // namespace flagattn::cpu
