// Picks the ISA level. What no level can do is refused here.
#include "attention/cpu/attention.h"

#include "arch/cpu_level.h"
#include "attention/cpu/isa.h"
#include "attention/decode_schedule.h"

namespace flagattn::cpu {
namespace {

// Keys are numbered in int32 lanes where masks are applied.
constexpr int64_t kMostKeys = int64_t{1} << 30;

struct Kernels {
  void (*forward)(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows);
  void (*decode)(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows);
  int64_t (*panel_columns)();
};

Kernels kernels_of(CpuLevel level) {
  switch (level) {
#if defined(FLAGATTN_HAS_AMX)
    case CpuLevel::kAmx:
      return {amx::attention_forward, amx::attention_decode, amx::attention_panel_columns};
#endif
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return {avx512::attention_forward, avx512::attention_decode, avx512::attention_panel_columns};
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return {avx2::attention_forward, avx2::attention_decode, avx2::attention_panel_columns};
#endif
    default:
      return {scalar::attention_forward, scalar::attention_decode, scalar::attention_panel_columns};
  }
}

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
  const Kernels kernels = kernels_of(cpu_level().level);
  const RowShares shares = row_shares(params, kernels.panel_columns());
  if (shares.many) kernels.forward(params, parallel, shares.few ? shares.most_rows + 1 : 0);
  if (shares.few) {
    AttentionParams part = params;
    if (part.seqlen_q > shares.most_rows) part.seqlen_q = shares.most_rows;
    kernels.decode(part, parallel, shares.most_rows);
  }
  return Status::success();
}

int64_t attention_panel_columns() { return kernels_of(cpu_level().level).panel_columns(); }

}  // namespace flagattn::cpu
