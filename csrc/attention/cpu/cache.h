// What a call does to a cache besides reading it: writing new rows.
#pragma once

#include "arch/parallel.h"
#include "attention/params.h"

namespace flagattn::cpu {

// Copies rows [0, params.cache.appended) of every sequence of `from` behind its seqlens in `to`, which is k, k2 or v of
// a checked `params`, with heads of `head_dim` elements.
void append_to_cache(const AttentionParams& params, const HeadsView& from, const HeadsView& to, int64_t head_dim,
                     const ParallelFor& parallel);

}  // namespace flagattn::cpu
