// The cache ops as their schemas spell them: arguments gathered and checked, for any device to run.
#pragma once

#include <span>

#include "torch/attention_ops.h"
#include "torch/new_rows.h"
#include "torch/rotary_args.h"

namespace flagattn {

// By which the new keys and the queries are rotated.
struct Rotation {
  const Tensor& cos;
  const Tensor& sin;
  bool interleaved;
};

// Arguments refer to what they are made of, so this must outlive them as well.
inline const std::optional<Tensor> kNotPacked;

// Device::attend(args): checks the arguments and attends.
// Device::append_and_attend(args, params, fresh, rotation): params hold what was checked, the rows to append included.
// Of those, the first are keys; `rotation` may be null.
template <typename Device>
struct CacheOps {
  static AttentionResults attention_kvcache(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                            const OptionalTensor& cache_seqlens, const OptionalTensor& cache_batch_idx,
                                            const OptionalTensor& cache_leftpad, const OptionalTensor& block_table,
                                            double softmax_scale, int64_t window_left, int64_t window_right,
                                            double softcap, const OptionalTensor& alibi_slopes,
                                            const OptionalTensor& sinks) {
    const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
    return Device::attend(batched_args("attention_kvcache", q, k_cache, v_cache, cache, softmax_scale, window_left,
                                       window_right, softcap, alibi_slopes, sinks));
  }

  static AttentionResults attention_kvcache_varlen(
      const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cu_seqlens_q,
      const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
      const OptionalTensor& cache_seqlens, const OptionalTensor& cache_batch_idx, const OptionalTensor& cache_leftpad,
      const OptionalTensor& block_table, double softmax_scale, int64_t window_left, int64_t window_right,
      double softcap, const OptionalTensor& alibi_slopes, const OptionalTensor& sinks) {
    constexpr const char* op = "attention_kvcache_varlen";
    check(!(cu_seqlens_k.has_value() && cache_seqlens.has_value()), op,
          "cu_seqlens_k and cache_seqlens are both given; either says how many rows of the cache a sequence has.");
    const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
    return Device::attend({.op = op,
                           .q = q,
                           .k = k_cache,
                           .v = v_cache,
                           .cu_seqlens_q = cu_seqlens_q,
                           .cu_seqlens_k = cu_seqlens_k,
                           .max_seqlen_q = max_seqlen_q,
                           .max_seqlen_k = max_seqlen_k,
                           .softmax_scale = softmax_scale,
                           .window_left = window_left,
                           .window_right = window_right,
                           .softcap = softcap,
                           .scores = {.alibi_slopes = pointer_to(alibi_slopes), .sinks = pointer_to(sinks)},
                           .cache = &cache});
  }

  static AttentionResults attention_kvcache_append(
      const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v,
      const OptionalTensor& rotary_cos, const OptionalTensor& rotary_sin, bool rotary_interleaved,
      const OptionalTensor& cache_seqlens, const OptionalTensor& cache_batch_idx, const OptionalTensor& cache_leftpad,
      const OptionalTensor& block_table, double softmax_scale, int64_t window_left, int64_t window_right,
      double softcap, const OptionalTensor& alibi_slopes, const OptionalTensor& sinks) {
    const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
    const AttentionArgs args = batched_args("attention_kvcache_append", q, k_cache, v_cache, cache, softmax_scale,
                                            window_left, window_right, softcap, alibi_slopes, sinks);
    AttentionParams params = checked_params(args);
    check(rotary_cos.has_value() == rotary_sin.has_value(), args.op,
          "rotary_cos and rotary_sin must be given together.");
    const NewRows fresh[] = {{{"k", k}, k_cache, params.head_dim}, {{"v", v}, v_cache, params.head_dim_v}};
    check_new_rows(args, fresh, params);
    if (!rotary_cos.has_value()) return Device::append_and_attend(args, params, fresh, nullptr);
    const Rotation rotation{*rotary_cos, *rotary_sin, rotary_interleaved};
    return Device::append_and_attend(args, params, fresh, &rotation);
  }

  static AttentionResults piecewise_kvcache(const Tensor& q1, const Tensor& k1_cache, const Tensor& q2,
                                            const Tensor& k2_cache, const Tensor& v_cache,
                                            const OptionalTensor& cache_seqlens, const OptionalTensor& cache_batch_idx,
                                            const OptionalTensor& cache_leftpad, const OptionalTensor& block_table,
                                            int64_t dist_threshold, double softmax_scale, int64_t window_left,
                                            int64_t window_right, double softcap, const OptionalTensor& sinks) {
    const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
    return Device::attend(piecewise_args("piecewise_kvcache", q1, k1_cache, q2, k2_cache, v_cache, cache,
                                         dist_threshold, softmax_scale, window_left, window_right, softcap, sinks));
  }

  static AttentionResults piecewise_kvcache_append(
      const Tensor& q1, const Tensor& k1_cache, const Tensor& q2, const Tensor& k2_cache, const Tensor& v_cache,
      const Tensor& k1, const Tensor& k2, const Tensor& v, const OptionalTensor& cache_seqlens,
      const OptionalTensor& cache_batch_idx, const OptionalTensor& cache_leftpad, const OptionalTensor& block_table,
      int64_t dist_threshold, double softmax_scale, int64_t window_left, int64_t window_right, double softcap,
      const OptionalTensor& sinks) {
    const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
    const AttentionArgs args = piecewise_args("piecewise_kvcache_append", q1, k1_cache, q2, k2_cache, v_cache, cache,
                                              dist_threshold, softmax_scale, window_left, window_right, softcap, sinks);
    AttentionParams params = checked_params(args);
    const NewRows fresh[] = {{{"k1", k1}, k1_cache, params.head_dim},
                             {{"k2", k2}, k2_cache, params.head_dim},
                             {{"v", v}, v_cache, params.head_dim_v}};
    check_new_rows(args, fresh, params);
    return Device::append_and_attend(args, params, fresh, nullptr);
  }

  template <typename Library>
  static void add_to(Library& library) {
    library.impl("attention_kvcache", TORCH_BOX(&CacheOps::attention_kvcache));
    library.impl("attention_kvcache_varlen", TORCH_BOX(&CacheOps::attention_kvcache_varlen));
    library.impl("attention_kvcache_append", TORCH_BOX(&CacheOps::attention_kvcache_append));
    library.impl("piecewise_kvcache", TORCH_BOX(&CacheOps::piecewise_kvcache));
    library.impl("piecewise_kvcache_append", TORCH_BOX(&CacheOps::piecewise_kvcache_append));
  }

 private:
  // Of queries that are not packed. All that is given must outlive the arguments.
  static AttentionArgs batched_args(const char* op, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                    const CacheArgs& cache, double softmax_scale, int64_t window_left,
                                    int64_t window_right, double softcap, const OptionalTensor& alibi_slopes,
                                    const OptionalTensor& sinks) {
    return {.op = op,
            .q = q,
            .k = k_cache,
            .v = v_cache,
            .cu_seqlens_q = kNotPacked,
            .cu_seqlens_k = kNotPacked,
            .softmax_scale = softmax_scale,
            .window_left = window_left,
            .window_right = window_right,
            .softcap = softcap,
            .scores = {.alibi_slopes = pointer_to(alibi_slopes), .sinks = pointer_to(sinks)},
            .cache = &cache};
  }

  static AttentionArgs piecewise_args(const char* op, const Tensor& q1, const Tensor& k1_cache, const Tensor& q2,
                                      const Tensor& k2_cache, const Tensor& v_cache, const CacheArgs& cache,
                                      int64_t dist_threshold, double softmax_scale, int64_t window_left,
                                      int64_t window_right, double softcap, const OptionalTensor& sinks) {
    return {.op = op,
            .q = q1,
            .k = k1_cache,
            .v = v_cache,
            .q2 = &q2,
            .k2 = &k2_cache,
            .cu_seqlens_q = kNotPacked,
            .cu_seqlens_k = kNotPacked,
            .dist_threshold = dist_threshold,
            .softmax_scale = softmax_scale,
            .window_left = window_left,
            .window_right = window_right,
            .softcap = softcap,
            .scores = {.sinks = pointer_to(sinks)},
            .cache = &cache};
  }
};

}  // namespace flagattn
