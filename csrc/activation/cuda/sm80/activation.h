// SwiGLU on GPUs of compute capability 8.0 and later.
#pragma once

#include "activation/params.h"
#include "arch/status.h"
#include "arch/stream.h"

namespace flagattn::sm80 {

// Enqueues the kernel on `stream`. Every dtype and stride the CPU takes; rows of 16-byte vectors are faster than
// others.
Status run_swiglu(const SwigluParams& params, Stream stream);
Status run_swiglu_backward(const SwigluBackwardParams& params, Stream stream);

}  // namespace flagattn::sm80
