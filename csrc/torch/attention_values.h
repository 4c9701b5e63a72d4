// The values of cu_seqlens, where the host can read them: the CPU's ops always look, CUDA's when asked (cuda_values.h).
#pragma once

#include <limits>

#include "torch/attention_args.h"

namespace flagattn {

inline void check_cu_seqlens_values(const char* op, const char* name, const int32_t* cu_seqlens, int64_t batch,
                                    int64_t total, int64_t max_seqlen) {
  check(cu_seqlens[0] == 0, op, name, " starts with ", cu_seqlens[0], "; it must start with 0.");
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = static_cast<int64_t>(cu_seqlens[b + 1]) - cu_seqlens[b];
    check(length >= 0, op, name, " falls from ", cu_seqlens[b], " to ", cu_seqlens[b + 1], " at index ", b + 1,
          "; it must not decrease.");
    check(length <= max_seqlen, op, name, " gives sequence ", b, " the length ", length, ", but its max_seqlen is ",
          max_seqlen, "; no sequence may be longer.");
  }
  check(cu_seqlens[batch] <= total, op, name, " ends with ", cu_seqlens[batch], ", but the tensor has ", total,
        " rows; it must not end behind them.");
}

inline void check_values(const AttentionArgs& args, const AttentionParams& params) {
  if (params.cu_seqlens_q != nullptr) {
    check_cu_seqlens_values(args.op, "cu_seqlens_q", params.cu_seqlens_q, params.batch, params.total_q,
                            args.max_seqlen_q);
  }
  if (params.cu_seqlens_k != nullptr) {
    // What a cache has room for is looked at with its other values.
    const int64_t total = params.has_cache() ? std::numeric_limits<int32_t>::max() : params.total_k;
    check_cu_seqlens_values(args.op, "cu_seqlens_k", params.cu_seqlens_k, params.batch, total, args.max_seqlen_k);
  }
}

}  // namespace flagattn
