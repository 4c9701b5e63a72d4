// Entry points of RMSNorm on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/parallel.h"
#include "arch/status.h"
#include "norm/params.h"

namespace flagattn::cpu {

Status run_rms_norm(const RmsNormParams& params, const ParallelFor& parallel);
Status run_rms_norm_backward(const RmsNormBackwardParams& params, const ParallelFor& parallel);

}  // namespace flagattn::cpu
