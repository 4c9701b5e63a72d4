#include "arch/cpu_level.h"
#include "arch/scratch.h"
#include "linear/cpu/few_rows_isa.h"
#include "linear/cpu/linear.h"

namespace flagattn::cpu {
namespace {

const FewRowsKernels& kernels_of(CpuLevel level) {
  switch (level) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::few_rows_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::few_rows_kernels;
#endif
    default:
      return scalar::few_rows_kernels;
  }
}

}  // namespace

Status run_few_row_linear(const FewRowsParams& params, const ParallelFor& parallel) {
  if (params.rows == 0) return Status::success();
  const FewRowsKernels& kernels = kernels_of(without_tiles(cpu_level().level));
  // So many weights that waking a thread for them pays.
  constexpr int64_t kItemBytes = 64 * 1024;
  const int64_t row_bytes = params.depth * size_of(params.dtype);
  const int64_t whole = row_bytes > 0 ? kItemBytes / row_bytes / kFewRowsCols * kFewRowsCols : 0;
  const int64_t cols_per_item = row_bytes == 0 ? kItemBytes : whole > 0 ? whole : kFewRowsCols;
  int64_t items = 0;
  int64_t ends[FewRowsParams::kMostMaps];  // of the maps' items
  for (int64_t m = 0; m < params.num_maps; ++m) {
    ends[m] = items += (params.maps[m].cols + cols_per_item - 1) / cols_per_item;
  }
  const size_t scratch = static_cast<size_t>(params.rows * few_rows_stride(params.depth)) * sizeof(float);
  for_each_item(
      parallel, items,
      [&] {
        float* rows = static_cast<float*>(thread_scratch(scratch));
        kernels.pack(params, rows);
        return rows;
      },
      [&](int64_t item, const float* rows) {
        int64_t m = 0;
        while (item >= ends[m]) ++m;
        const int64_t begin = (item - (m > 0 ? ends[m - 1] : 0)) * cols_per_item, cols = params.maps[m].cols;
        const int64_t end = begin + cols_per_item < cols ? begin + cols_per_item : cols;
        kernels.columns(params, params.maps[m], begin, end, rows);
      });
  return Status::success();
}

}  // namespace flagattn::cpu
