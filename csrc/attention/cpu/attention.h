// Entry points of attention on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/parallel.h"
#include "arch/status.h"
#include "attention/params.h"

namespace flagattn::cpu {

Status run_attention_forward(const AttentionParams& params, const ParallelFor& parallel);
Status run_attention_backward(const AttentionBackwardParams& params, const ParallelFor& parallel);

// Query rows that the chosen ISA level holds in its lanes at once; for explanations.
int64_t attention_panel_columns();

}  // namespace flagattn::cpu
