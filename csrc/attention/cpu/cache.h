// What a call does to a cache besides reading it: looking at the values that say where rows lie, and writing new rows.
#pragma once

#include "arch/parallel.h"
#include "arch/status.h"
#include "attention/params.h"

namespace flagattn::cpu {

// Refuses lengths, paddings, indices and pages that would lead outside the cache and, where rows are to be appended,
// rows and pages that another sequence uses too. Nothing is written. Sets params.seqlen_k to the longest sequence.
Status check_cache(AttentionParams& params);

// Copies rows [0, params.cache.appended) of every sequence of `from` behind its seqlens in `to`, which is k, k2 or v of
// a checked `params`, with heads of `head_dim` elements.
void append_to_cache(const AttentionParams& params, const HeadsView& from, const HeadsView& to, int64_t head_dim,
                     const ParallelFor& parallel);

}  // namespace flagattn::cpu
