// What the ISA levels offer; attention.cpp picks one. Each is compiled from the *_isa.cpp files.
#pragma once

#include "arch/parallel.h"
#include "attention/params.h"

namespace flagattn {

namespace scalar {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel);
int64_t attention_panel_columns();
}  // namespace scalar
namespace avx2 {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel);
int64_t attention_panel_columns();
}  // namespace avx2
namespace avx512 {
void attention_forward(const AttentionParams& params, const ParallelFor& parallel);
void attention_decode(const AttentionParams& params, const ParallelFor& parallel);
int64_t attention_panel_columns();
}  // namespace avx512

}  // namespace flagattn
