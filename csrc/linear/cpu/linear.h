// Entry points of the linear maps on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/matrix_product.h"
#include "arch/parallel.h"
#include "arch/status.h"
#include "linear/params.h"

namespace flagattn::cpu {

Status run_batch_invariant_linear(const LinearParams& params, const ParallelFor& parallel);

Status run_few_row_linear(const FewRowsParams& params, const ParallelFor& parallel);

// The MatrixProduct with the sums of run_batch_invariant_linear for operands that are `dtype`, or were computed from
// such: where the level multiplies bf16 in tiles, the views' elements are rounded to it.
MatrixProduct invariant_product(DType dtype);

}  // namespace flagattn::cpu
