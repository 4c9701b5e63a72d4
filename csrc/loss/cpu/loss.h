// Entry points of cross-entropy on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/matrix_product.h"
#include "arch/parallel.h"
#include "arch/status.h"
#include "loss/cpu/loss_isa.h"
#include "loss/params.h"

namespace flagattn::cpu {

Status run_cross_entropy(const CrossEntropyParams& params, const ParallelFor& parallel);
Status run_cross_entropy_backward(const CrossEntropyBackwardParams& params, const ParallelFor& parallel);
Status run_linear_cross_entropy(const LinearCrossEntropyParams& params, const ParallelFor& parallel,
                                MatrixProduct product);
Status run_linear_cross_entropy_backward(const LinearCrossEntropyBackwardParams& params, const ParallelFor& parallel,
                                         MatrixProduct product);

const LossKernels& loss_kernels();

}  // namespace flagattn::cpu
