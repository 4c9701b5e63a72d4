// Rows that an op appends to caches, checked. Serves CPU and CUDA.
#pragma once

#include <span>
#include <vector>

#include "torch/attention_args.h"

namespace flagattn {

// Rows to append: one tensor for each of the caches.
struct NewRows {
  Argument rows;
  const Tensor& cache;
  int64_t head_dim;
};

inline void check_written_cache(const char* op, const NewRows& fresh, std::span<const NewRows> others) {
  const Sizes sizes = fresh.cache.sizes(), strides = fresh.cache.strides();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    check(strides[dim] != 0 || sizes[dim] <= 1, op, "a cache of shape ", text_of(sizes), " is expanded over dimension ",
          dim, "; rows cannot be appended to elements that share memory.");
  }
  for (const NewRows& other : others) {
    check(fresh.cache.const_data_ptr() != other.cache.const_data_ptr() || fresh.cache.numel() == 0, op, fresh.rows.name,
          "_cache and ", other.rows.name,
          "_cache begin at the same element; rows cannot be appended to caches that share memory.");
  }
}

inline void check_new_rows(const AttentionArgs& args, std::span<const NewRows> fresh, AttentionParams& params) {
  const char *op = args.op, *meaning = "(batch, seqlen_new, heads_k, head_dim)";
  const Argument q(args.name_q(), args.q), &first = fresh[0].rows;
  check(args.cache->seqlens.has_value(), op, first.name,
        " is given, but cache_seqlens is not; it says where the new rows go.");
  check(first.dim() == 4, op, first.name, " has shape ", text_of(first.sizes), "; it must be ", meaning, ".");
  params.cache.appended = first.sizes[1];
  for (size_t i = 0; i < fresh.size(); ++i) {
    const Argument& rows = fresh[i].rows;
    check_same_dtype(op, rows, q);
    check_same_device(op, rows, q);
    check_last_dim_contiguous(op, rows);
    check_shape(op, rows, {params.batch, params.cache.appended, params.heads_k, fresh[i].head_dim}, meaning);
    check_written_cache(op, fresh[i], fresh.subspan(i + 1));
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
