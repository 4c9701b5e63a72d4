// Entry points of attention on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/parallel.h"
#include "arch/status.h"
#include "attention/params.h"

namespace flagattn::cpu {

Status run_attention_forward(const AttentionParams& params, const ParallelFor& parallel);
Status run_attention_backward(const AttentionBackwardParams& params, const ParallelFor& parallel);
// Where params.dbias is asked for, and apart from the rest: it sums over other dimensions.
Status run_attention_bias_gradient(const AttentionBackwardParams& params, const ParallelFor& parallel);
// sums (batch, heads_q, seqlen_k) = sum over the rows of exp(score - lse); v and out are not read.
Status run_attention_column_sums(const AttentionParams& params, const RowsView& sums, const ParallelFor& parallel);

// Query rows that the chosen ISA level holds in its lanes at once; for explanations.
int64_t attention_panel_columns();

}  // namespace flagattn::cpu
