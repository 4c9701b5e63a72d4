// What the ISA levels offer; attention.cpp picks one. Each is compiled from the *_isa.cpp files. Sequences of fewer
// query rows than least_rows, or more than most_rows, are left out.
#pragma once

#include "arch/parallel.h"
#include "attention/params.h"

namespace flagattn {

namespace scalar {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows);
int64_t attention_panel_columns();
void attention_bias_gradient(const AttentionBackwardParams& params, const ParallelFor& parallel);
void attention_column_sums(const AttentionParams& params, const RowsView& sums, const ParallelFor& parallel);
}  // namespace scalar
namespace avx2 {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows);
int64_t attention_panel_columns();
void attention_bias_gradient(const AttentionBackwardParams& params, const ParallelFor& parallel);
void attention_column_sums(const AttentionParams& params, const RowsView& sums, const ParallelFor& parallel);
}  // namespace avx2
namespace avx512 {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows);
int64_t attention_panel_columns();
void attention_bias_gradient(const AttentionBackwardParams& params, const ParallelFor& parallel);
void attention_column_sums(const AttentionParams& params, const RowsView& sums, const ParallelFor& parallel);
}  // namespace avx512
namespace amx {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows);
int64_t attention_panel_columns();
}  // namespace amx

}  // namespace flagattn
