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

// Sizes and strides are counted in rows of 16 bytes, so everything must lie on such borders.
inline bool is_aligned(const HeadsView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch_stride % 8 == 0 && view.row_stride % 8 == 0 &&
         view.head_stride % 8 == 0;
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
  const bool has_q = (params.is_packed() ? params.total_q : params.batch * params.seqlen_q) > 0;
  const bool has_k = (params.has_cache()   ? params.cache.rows * params.cache.capacity
                      : params.is_packed() ? params.total_k
                                           : params.batch * params.seqlen_k) > 0;
  const std::tuple<const char*, const HeadsView&, bool> operands[] = {
      {name_q, params.q, has_q}, {name_k, params.k, has_k}, {"v", params.v, has_k},
      {"q2", params.q2, has_q},  {"k2", params.k2, has_k},  {"out", params.out, has_q}};
  for (const auto& [name, view, has_rows] : operands) {
    if (has_rows && !is_aligned(view)) {
      return Status::error(std::string(name) +
                           " does not start at, or step in, multiples of 16 bytes as attention on CUDA needs; "
                           "call .contiguous() on it");
    }
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
