// Picks the ISA level of the passes that sum over rows.
#include "arch/cpu_level.h"
#include "attention/cpu/attention.h"
#include "attention/cpu/isa.h"

namespace flagattn::cpu {

Status run_attention_bias_gradient(const AttentionBackwardParams& params, const ParallelFor& parallel) {
  switch (without_tiles(cpu_level().level)) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      avx512::attention_bias_gradient(params, parallel);
      break;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      avx2::attention_bias_gradient(params, parallel);
      break;
#endif
    default:
      scalar::attention_bias_gradient(params, parallel);
  }
  return Status::success();
}

Status run_attention_column_sums(const AttentionParams& params, const RowsView& sums, const ParallelFor& parallel) {
  switch (without_tiles(cpu_level().level)) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      avx512::attention_column_sums(params, sums, parallel);
      break;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      avx2::attention_column_sums(params, sums, parallel);
      break;
#endif
    default:
      scalar::attention_column_sums(params, sums, parallel);
  }
  return Status::success();
}

}  // namespace flagattn::cpu
