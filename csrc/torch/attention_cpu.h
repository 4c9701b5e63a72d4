// What only the CPU's attention ops do: read the values of cu_seqlens, and define the rows that belong to no sequence.
#pragma once

#include <cstring>
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

// Rows of a contiguous packed tensor behind the last sequence; kernels do not visit them.
inline void zero_rows_behind(const Tensor& tensor, int64_t end) {
  const int64_t row_bytes = tensor.stride(0) * static_cast<int64_t>(tensor.element_size());
  const int64_t rows = tensor.size(0) - end;
  // Strides of a tensor without elements are not 0.
  if (rows > 0 && tensor.numel() > 0)
    std::memset(static_cast<char*>(output_data(tensor)) + end * row_bytes, 0, rows * row_bytes);
}

inline void clear_lse_behind(const RowsView& lse, int64_t heads, int64_t total, int64_t end) {
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t row = end; row < total; ++row) {
      lse.data[head * lse.head_stride + row] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Behind a forward of packed queries.
inline void define_rows_behind(const AttentionParams& params, const Tensor& out) {
  if (!params.is_packed()) return;
  const int64_t end = params.cu_seqlens_q[params.batch];
  zero_rows_behind(out, end);
  clear_lse_behind(params.lse, params.heads_q, params.total_q, end);
}

}  // namespace flagattn
