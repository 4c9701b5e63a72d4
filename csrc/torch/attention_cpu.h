// What only the CPU's attention ops do: define the rows that belong to no sequence.
#pragma once

#include <cstring>
#include <limits>

#include "torch/attention_values.h"

namespace flagattn {

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
