// Cross-entropy on GPUs of compute capability 8.0 and later.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "loss/cuda/sm80/heuristics.h"
#include "loss/params.h"

namespace flagattn::sm80 {

// Enqueue the kernels on `stream`, and say in one sentence what they cannot do. `scratch` has as many doubles as
// cross_entropy_scratch() and cross_entropy_backward_scratch() tell. Targets outside the classes count as the nearest.
Status run_cross_entropy(const CrossEntropyParams& params, double* scratch, Stream stream);
Status run_cross_entropy_backward(const CrossEntropyBackwardParams& params, double* scratch, Stream stream);

}  // namespace flagattn::sm80
