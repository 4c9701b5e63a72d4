// Rotary embedding on GPUs of compute capability 8.0 and later.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "rotary/params.h"

namespace flagattn::sm80 {

// Enqueues the kernel on `stream`. Every dtype, stride and layout the CPU takes; heads of 16-byte vectors are faster
// than others. Positions outside the tables are moved to their nearest row.
Status run_rotary(const RotaryParams& params, Stream stream);

}  // namespace flagattn::sm80
