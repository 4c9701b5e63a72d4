// RMSNorm on GPUs of compute capability 8.0 and later.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "norm/params.h"

namespace flagattn::sm80 {

// Enqueues the kernels on `stream`. Every dtype and stride the CPU takes; rows of 16-byte vectors are faster than
// others. With dweight the backward needs norm_backward_scratch() bytes (heuristics.h).
Status run_rms_norm(const RmsNormParams& params, Stream stream);
Status run_rms_norm_backward(const RmsNormBackwardParams& params, Stream stream);

}  // namespace flagattn::sm80
