// Picks the ISA level. What no level can do is refused here.
#include "attention/cpu/attention.h"

#include "arch/cpu_level.h"
#include "attention/cpu/isa.h"
#include "attention/decode_schedule.h"

namespace flagattn::cpu {
namespace {

// Keys are numbered in int32 lanes where masks are applied.
constexpr int64_t kMostKeys = int64_t{1} << 30;

Status check_sizes(const AttentionParams& params) {
  if (params.seqlen_k > kMostKeys) {
    return Status::error("k has " + std::to_string(params.seqlen_k) +
                         " keys per sequence; the CPU kernels take at most " + std::to_string(kMostKeys) + ".");
  }
  return Status::success();
}

}  // namespace

Status run_attention_forward(const AttentionParams& params, const ParallelFor& parallel) {
  if (Status status = check_sizes(params); !status.ok()) return status;
  const bool few = decodes(params, attention_panel_columns());
  switch (cpu_level().level) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      few ? avx512::attention_decode(params, parallel) : avx512::attention_forward(params, parallel);
      break;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      few ? avx2::attention_decode(params, parallel) : avx2::attention_forward(params, parallel);
      break;
#endif
    default:
      few ? scalar::attention_decode(params, parallel) : scalar::attention_forward(params, parallel);
  }
  return Status::success();
}

int64_t attention_panel_columns() {
  switch (cpu_level().level) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::attention_panel_columns();
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::attention_panel_columns();
#endif
    default:
      return scalar::attention_panel_columns();
  }
}

}  // namespace flagattn::cpu
