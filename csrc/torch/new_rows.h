// Rows that an op appends to caches, checked. Serves CPU and CUDA.
#pragma once

#include <vector>

#include "torch/attention_args.h"

namespace flagattn {

// Rows to append: one tensor for each of the caches.
struct NewRows {
  Argument rows;
  const Tensor& cache;
  int64_t head_dim;
};

inline void check_new_rows(const char* op, const NewRows& fresh, const Argument& q, const AttentionParams& params) {
  check_same_dtype(op, fresh.rows, q);
  check_same_device(op, fresh.rows, q);
  check_last_dim_contiguous(op, fresh.rows);
  check_shape(op, fresh.rows, {params.batch, params.cache.appended, params.heads_k, fresh.head_dim},
              "(batch, seqlen_new, heads_k, head_dim)");
  const Sizes sizes = fresh.cache.sizes(), strides = fresh.cache.strides();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    check(strides[dim] != 0 || sizes[dim] <= 1, op, "a cache of shape ", text_of(sizes), " is expanded over dimension ",
          dim, "; rows cannot be appended to elements that share memory.");
  }
}

// Where the host can read seqlens: seqlens[b] + i for row i of sequence b, or seqlens[b] for all its rows.
inline std::vector<int64_t> positions_behind(const AttentionParams& params, int64_t rows, bool each_its_own) {
  std::vector<int64_t> positions(static_cast<size_t>(params.batch * rows));
  for (int64_t b = 0; b < params.batch; ++b) {
    for (int64_t i = 0; i < rows; ++i) {
      positions[static_cast<size_t>(b * rows + i)] = params.cache.seqlens[b] + (each_its_own ? i : 0);
    }
  }
  return positions;
}

}  // namespace flagattn
