// Checks what the forward kernel can do and picks its instantiation.
#include "attention/cuda/sm80/forward.h"

#include <cstdint>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>

#include "attention/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

template <typename Element, int kHeadDim>
Status launch_attention_forward(const AttentionParams& params, Stream stream);

extern template Status launch_attention_forward<BFloat16, 64>(const AttentionParams&, Stream);
extern template Status launch_attention_forward<BFloat16, 128>(const AttentionParams&, Stream);
extern template Status launch_attention_forward<Float16, 64>(const AttentionParams&, Stream);
extern template Status launch_attention_forward<Float16, 128>(const AttentionParams&, Stream);

namespace {

// Sizes and strides are counted in rows of 16 bytes, so everything must lie on such borders.
bool is_aligned(const HeadsView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch_stride % 8 == 0 && view.row_stride % 8 == 0 &&
         view.head_stride % 8 == 0;
}

Status check(const AttentionParams& params) {
  if (params.dtype == DType::kFloat32) {
    return Status::error("q has dtype float32; attention on CUDA supports bfloat16 and float16");
  }
  if (params.is_piecewise()) {
    return Status::error("q2 was given; piecewise attention is not supported on CUDA yet, only on CPU");
  }
  for (const auto& [name, given] : {std::pair{"bias", params.bias.data != nullptr},
                                    {"keep", params.keep.data != nullptr},
                                    {"alibi_slopes", params.alibi.slopes != nullptr},
                                    {"sinks", params.sinks != nullptr},
                                    {"dropout_p", params.dropout.rng_state != nullptr}}) {
    if (given) return Status::error(std::string(name) + " was given; it is not supported on CUDA yet, only on CPU");
  }
  for (const auto& [name, size] : {std::pair{"q", params.head_dim}, std::pair{"v", params.head_dim_v}}) {
    if (size < 8 || size > 128 || size % 8 != 0) {
      return Status::error(std::string(name) + " has head dimension " + std::to_string(size) +
                           "; attention on CUDA supports multiples of 8 from 8 to 128");
    }
  }
  const bool has_q = (params.is_packed() ? params.total_q : params.batch * params.seqlen_q) > 0;
  const bool has_k = (params.is_packed() ? params.total_k : params.batch * params.seqlen_k) > 0;
  const std::tuple<const char*, const HeadsView&, bool> operands[] = {
      {"q", params.q, has_q}, {"k", params.k, has_k}, {"v", params.v, has_k}, {"out", params.out, has_q}};
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

}  // namespace

Status run_attention_forward(const AttentionParams& params, Stream stream) {
  if (Status status = check(params); !status.ok()) return status;
  const bool is_small = forward_kernel_head_dim(params.head_dim, params.head_dim_v) == 64;
  if (params.dtype == DType::kBFloat16) {
    return is_small ? launch_attention_forward<BFloat16, 64>(params, stream)
                    : launch_attention_forward<BFloat16, 128>(params, stream);
  }
  return is_small ? launch_attention_forward<Float16, 64>(params, stream)
                  : launch_attention_forward<Float16, 128>(params, stream);
}

}  // namespace flagattn::sm80
