// Attention over caches on GPUs of compute capability 8.0 and later.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// fp32 numbers that run_attention_decode needs beside the operands, on a 16-byte border.
int64_t attention_decode_workspace(const AttentionParams& params);

// Enqueues the kernels on `stream`; says in one sentence what they cannot do. What run_attention_forward takes, with
// params.cache and without masks, biases and dropout; queries may be packed. Lengths and places outside the caches are
// clamped.
Status run_attention_decode(const AttentionParams& params, float* workspace, Stream stream);

}  // namespace flagattn::sm80
