#include "linear/cpu/linear.h"

#include "arch/cpu_level.h"
#include "arch/scratch.h"
#include "linear/cpu/linear_isa.h"

namespace flagattn::cpu {
namespace {

const LinearKernels& kernels_of(CpuLevel level) {
  switch (level) {
#if defined(FLAGATTN_HAS_AMX)
    case CpuLevel::kAmx:
      return amx::linear_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::linear_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::linear_kernels;
#endif
    default:
      return scalar::linear_kernels;
  }
}

void plain_product(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate) {
  float* scratch = static_cast<float*>(thread_scratch(kProductScratch * sizeof(float)));
  kernels_of(cpu_level().level).product(a, b, c, accumulate, scratch);
}

void tile_product(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate) {
  float* scratch = static_cast<float*>(thread_scratch(kTileScratch * sizeof(float)));
  kernels_of(cpu_level().level).tile_product(a, b, c, accumulate, scratch);
}

}  // namespace

Status run_batch_invariant_linear(const LinearParams& params, const ParallelFor& parallel) {
  const LinearKernels& kernels = kernels_of(cpu_level().level);
  const int64_t row_blocks = (params.rows + kLinearRows - 1) / kLinearRows;
  const int64_t col_blocks = (params.cols + kLinearCols - 1) / kLinearCols;
  for_each_item(
      parallel, row_blocks * col_blocks,
      [] { return static_cast<float*>(thread_scratch(kLinearScratch * sizeof(float))); },
      [&](int64_t item, float* scratch) {
        kernels.block(params, item / col_blocks * kLinearRows, item % col_blocks * kLinearCols, scratch);
      });
  return Status::success();
}

MatrixProduct invariant_product(DType dtype) {
  if (dtype == DType::kBFloat16 && kernels_of(cpu_level().level).tile_product != nullptr) return tile_product;
  return plain_product;
}

}  // namespace flagattn::cpu
