// Entry point of rotary position embedding on the CPU. It picks the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/parallel.h"
#include "arch/status.h"
#include "rotary/params.h"

namespace flagattn::cpu {

// Refuses positions outside the tables before anything is written.
Status run_rotary(const RotaryParams& params, const ParallelFor& parallel);

}  // namespace flagattn::cpu
