// Entry points of the gated activation on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "activation/params.h"
#include "arch/parallel.h"
#include "arch/status.h"

namespace flagattn::cpu {

Status run_swiglu(const SwigluParams& params, const ParallelFor& parallel);
Status run_swiglu_backward(const SwigluBackwardParams& params, const ParallelFor& parallel);

}  // namespace flagattn::cpu
