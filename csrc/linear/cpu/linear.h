// Entry points of the linear maps on the CPU. They pick the ISA level once per call (arch/cpu_level.h).
#pragma once

#include "arch/matrix_product.h"
#include "arch/parallel.h"
#include "arch/status.h"
#include "linear/params.h"

namespace flagattn::cpu {

Status run_batch_invariant_linear(const LinearParams& params, const ParallelFor& parallel);

Status run_few_row_linear(const FewRowsParams& params, const ParallelFor& parallel);

// A MatrixProduct with the sums of run_batch_invariant_linear.
void invariant_product(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate);

}  // namespace flagattn::cpu
