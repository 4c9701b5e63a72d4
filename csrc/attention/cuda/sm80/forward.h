// Attention forward on GPUs of compute capability 8.0 and later.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Enqueues the kernel on `stream`; says in one sentence what it cannot do. bf16 and fp16, head dims that are multiples
// of 8 up to 256, every operand on 16-byte borders; all other parameters are free. Caches are not read.
Status run_attention_forward(const AttentionParams& params, Stream stream);

}  // namespace flagattn::sm80
