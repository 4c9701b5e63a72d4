// What all attention kernels ask of their operands.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>

#include "arch/status.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// How many rows and heads an operand has; packed rows are of one batch row.
struct OperandSizes {
  int64_t batch, rows, heads;

  bool has_rows() const { return batch * rows > 0; }
};
inline OperandSizes sizes_of_q(const AttentionParams& params) {
  if (params.is_packed()) return {1, params.total_q, params.heads_q};
  return {params.batch, params.seqlen_q, params.heads_q};
}
inline OperandSizes sizes_of_k(const AttentionParams& params) {
  const CacheParams& cache = params.cache;
  if (params.has_cache()) return {cache.rows, cache.page_size > 0 ? cache.page_size : cache.capacity, params.heads_k};
  if (params.is_packed()) return {1, params.total_k, params.heads_k};
  return {params.batch, params.seqlen_k, params.heads_k};
}

// Sizes and strides are counted in rows of 16 bytes, so everything must lie on such borders; a stride that is never
// stepped may be anything.
inline bool is_aligned(const HeadsView& view, const OperandSizes& sizes) {
  const auto fits = [](int64_t size, int64_t stride) { return size <= 1 || stride % 8 == 0; };
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && fits(sizes.batch, view.batch_stride) &&
         fits(sizes.rows, view.row_stride) && fits(sizes.heads, view.head_stride);
}

inline Status check_alignment(const char* name, const HeadsView& view, const OperandSizes& sizes) {
  if (!sizes.has_rows() || is_aligned(view, sizes)) return Status::success();
  return Status::error(std::string(name) +
                       " does not start at, or step in, multiples of 16 bytes as attention on CUDA needs; "
                       "call .contiguous() on it");
}

inline Status check_operands(const AttentionParams& params) {
  const char* name_q = params.is_piecewise() ? "q1" : "q";
  const char* name_k = params.is_piecewise() ? "k1" : "k";
  if (params.dtype == DType::kFloat32) {
    return Status::error(std::string(name_q) + " has dtype float32; attention on CUDA supports bfloat16 and float16");
  }
  for (const auto& [name, size] : {std::pair{name_q, params.head_dim}, std::pair{"v", params.head_dim_v}}) {
    if (size < 8 || size > 256 || size % 8 != 0) {
      return Status::error(std::string(name) + " has head dimension " + std::to_string(size) +
                           "; attention on CUDA supports multiples of 8 from 8 to 256");
    }
  }
  const OperandSizes sizes_q = sizes_of_q(params), sizes_k = sizes_of_k(params);
  const std::tuple<const char*, const HeadsView&, const OperandSizes&> operands[] = {
      {name_q, params.q, sizes_q}, {name_k, params.k, sizes_k}, {"v", params.v, sizes_k},
      {"q2", params.q2, sizes_q},  {"k2", params.k2, sizes_k},  {"out", params.out, sizes_q}};
  for (const auto& [name, view, sizes] : operands) {
    if (Status status = check_alignment(name, view, sizes); !status.ok()) return status;
  }
  for (const auto& [name, length] : {std::pair{"seqlen_q", params.seqlen_q}, std::pair{"seqlen_k", params.seqlen_k}}) {
    if (length > (int64_t{1} << 30)) {
      return Status::error(std::string(name) + " is " + std::to_string(length) +
                           "; attention on CUDA supports at most 2^30");
    }
  }
  return Status::success();
}

}  // namespace flagattn::sm80
