// Attention backward on GPUs of compute capability 8.0 and later.
#pragma once

#include <cstdint>

#include "arch/status.h"
#include "arch/stream.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Floats that params.workspace must have room for on the current GPU.
int64_t attention_backward_workspace(const AttentionParams& params);

// Enqueues the kernels on `stream`; says in one sentence what they cannot do. bf16 and fp16, head dims that are
// multiples of 8 up to 256, every operand on 16-byte borders.
Status run_attention_backward(const AttentionBackwardParams& params, Stream stream);

}  // namespace flagattn::sm80
