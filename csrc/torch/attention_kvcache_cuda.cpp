// Attention over caches on CUDA: check shapes, enqueue the copies of new rows, attend. What only values tell (lengths,
// places, pages) the kernels clamp.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "attention/cuda/sm80/append.h"
#include "attention/cuda/sm80/decode.h"
#include "torch/attention_args.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"
#include "torch/new_rows.h"
#include "torch/rotary_args.h"

namespace flagattn {
namespace {

std::tuple<Tensor, Tensor> attend(const AttentionArgs& args, AttentionParams& params) {
  Tensor out = empty_out(params, args.q);
  Tensor lse = empty_lse(params, args.q);
  params.out = heads_output(out);
  params.lse = rows_output(lse);
  Tensor workspace = empty_like_device(args.q, ScalarType::Float, {sm80::attention_decode_workspace(params)});
  check(sm80::run_attention_decode(params, static_cast<float*>(output_data(workspace)),
                                   current_cuda_stream(args.q.get_device_index())),
        args.op);
  return {std::move(out), std::move(lse)};
}

std::tuple<Tensor, Tensor> attend_cache(const AttentionArgs& args) {
  AttentionParams params = checked_params(args);
  check_values_if_asked(args, params);
  // The bound that comes with the lengths: blocks are made for as many keys.
  if (params.cu_seqlens_k != nullptr) params.seqlen_k = std::min(params.seqlen_k, args.max_seqlen_k);
  const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());
  return attend(args, params);
}

void append(const AttentionArgs& args, const AttentionParams& params, const sm80::AppendParams& rows) {
  check(sm80::run_append(params, rows, current_cuda_stream(args.q.get_device_index())), args.op);
}

sm80::AppendParams plain_rows(const AttentionParams& params, const NewRows& fresh) {
  sm80::AppendParams rows;
  rows.name = fresh.rows.name;
  rows.from = heads_input(fresh.rows);
  rows.to = heads_output(fresh.cache);
  rows.rows = params.cache.appended;
  rows.heads = params.heads_k;
  rows.head_dim = fresh.head_dim;
  return rows;
}

void add_rotation(const RotaryArgs& args, sm80::AppendParams& rows) {
  const RotaryParams rotary = checked_rotary_params(args);
  rows.cos = rotary.cos;
  rows.sin = rotary.sin;
  rows.table_dtype = rotary.table_dtype;
  rows.half_dim = rotary.half_dim;
  rows.num_positions = rotary.num_positions;
  rows.interleaved = rotary.interleaved;
}

std::tuple<Tensor, Tensor> attention_kvcache(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const std::optional<Tensor>& cache_seqlens,
    const std::optional<Tensor>& cache_batch_idx, const std::optional<Tensor>& cache_leftpad,
    const std::optional<Tensor>& block_table, double softmax_scale, int64_t window_left, int64_t window_right,
    double softcap, const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& sinks) {
  const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
  return attend_cache({"attention_kvcache",
                       q,
                       k_cache,
                       v_cache,
                       nullptr,
                       nullptr,
                       std::nullopt,
                       std::nullopt,
                       0,
                       0,
                       /*dist_threshold=*/0,
                       softmax_scale,
                       window_left,
                       window_right,
                       softcap,
                       {.alibi_slopes = pointer_to(alibi_slopes), .sinks = pointer_to(sinks)},
                       &cache});
}

std::tuple<Tensor, Tensor> attention_kvcache_varlen(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
    const std::optional<Tensor>& cache_seqlens, const std::optional<Tensor>& cache_batch_idx,
    const std::optional<Tensor>& cache_leftpad, const std::optional<Tensor>& block_table, double softmax_scale,
    int64_t window_left, int64_t window_right, double softcap, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& sinks) {
  constexpr const char* op = "attention_kvcache_varlen";
  check(!(cu_seqlens_k.has_value() && cache_seqlens.has_value()), op,
        "cu_seqlens_k and cache_seqlens are both given; either says how many rows of the cache a sequence has.");
  const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
  const std::optional<Tensor> cu_q = cu_seqlens_q;
  return attend_cache({op,
                       q,
                       k_cache,
                       v_cache,
                       nullptr,
                       nullptr,
                       cu_q,
                       cu_seqlens_k,
                       max_seqlen_q,
                       max_seqlen_k,
                       /*dist_threshold=*/0,
                       softmax_scale,
                       window_left,
                       window_right,
                       softcap,
                       {.alibi_slopes = pointer_to(alibi_slopes), .sinks = pointer_to(sinks)},
                       &cache});
}

std::tuple<Tensor, Tensor> attention_kvcache_append(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v,
    const std::optional<Tensor>& rotary_cos, const std::optional<Tensor>& rotary_sin, bool rotary_interleaved,
    const std::optional<Tensor>& cache_seqlens, const std::optional<Tensor>& cache_batch_idx,
    const std::optional<Tensor>& cache_leftpad, const std::optional<Tensor>& block_table, double softmax_scale,
    int64_t window_left, int64_t window_right, double softcap, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& sinks) {
  constexpr const char* op = "attention_kvcache_append";
  const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
  const AttentionArgs args{op,
                           q,
                           k_cache,
                           v_cache,
                           nullptr,
                           nullptr,
                           std::nullopt,
                           std::nullopt,
                           0,
                           0,
                           /*dist_threshold=*/0,
                           softmax_scale,
                           window_left,
                           window_right,
                           softcap,
                           {.alibi_slopes = pointer_to(alibi_slopes), .sinks = pointer_to(sinks)},
                           &cache};
  AttentionParams params = checked_params(args);
  check(rotary_cos.has_value() == rotary_sin.has_value(), op, "rotary_cos and rotary_sin must be given together.");
  const NewRows keys{{"k", k}, k_cache, params.head_dim}, values{{"v", v}, v_cache, params.head_dim_v};
  check(cache_seqlens.has_value(), op, "k is given, but cache_seqlens is not; it says where the new rows go.");
  check(k.dim() == 4, op, "k has shape ", text_of(k.sizes()), "; it must be (batch, seqlen_new, heads_k, head_dim).");
  params.cache.appended = k.size(1);
  for (const NewRows* rows : {&keys, &values}) check_new_rows(op, *rows, {"q", q}, params);
  check_values_if_asked(args, params);

  const torch::stable::accelerator::DeviceGuard on_device(q.get_device_index());
  sm80::AppendParams new_keys = plain_rows(params, keys);
  Tensor rotated_q = q;
  if (rotary_cos.has_value()) {
    const bool own_positions = params.mask.window_left >= 0 || params.mask.window_right >= 0;
    const RotaryArgs of_k{op, k, *rotary_cos, *rotary_sin, rotary_interleaved, false};
    const RotaryArgs of_q{op, q, *rotary_cos, *rotary_sin, rotary_interleaved, false};
    check_positions_if_asked(of_k, params, cache_seqlens, params.cache.appended, true);
    check_positions_if_asked(of_q, params, cache_seqlens, params.seqlen_q, own_positions);
    add_rotation(of_k, new_keys);
    rotated_q = empty_like_device(q, q.scalar_type(), q.sizes());
    sm80::AppendParams queries;
    queries.name = "q";
    add_rotation(of_q, queries);
    queries.from = params.q;
    queries.to = heads_output(rotated_q);
    queries.rows = params.seqlen_q;
    queries.heads = params.heads_q;
    queries.head_dim = params.head_dim;
    queries.to_cache = false;
    queries.own_positions = own_positions;
    append(args, params, queries);
    params.q = heads_input({"q", rotated_q});
  }
  append(args, params, new_keys);
  append(args, params, plain_rows(params, values));
  return attend(args, params);
}

std::tuple<Tensor, Tensor> piecewise_kvcache(const Tensor& q1, const Tensor& k1_cache, const Tensor& q2,
                                             const Tensor& k2_cache, const Tensor& v_cache,
                                             const std::optional<Tensor>& cache_seqlens,
                                             const std::optional<Tensor>& cache_batch_idx,
                                             const std::optional<Tensor>& cache_leftpad,
                                             const std::optional<Tensor>& block_table, int64_t dist_threshold,
                                             double softmax_scale, int64_t window_left, int64_t window_right,
                                             double softcap, const std::optional<Tensor>& sinks) {
  const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
  return attend_cache({"piecewise_kvcache",
                       q1,
                       k1_cache,
                       v_cache,
                       &q2,
                       &k2_cache,
                       std::nullopt,
                       std::nullopt,
                       0,
                       0,
                       dist_threshold,
                       softmax_scale,
                       window_left,
                       window_right,
                       softcap,
                       {.sinks = pointer_to(sinks)},
                       &cache});
}

std::tuple<Tensor, Tensor> piecewise_kvcache_append(
    const Tensor& q1, const Tensor& k1_cache, const Tensor& q2, const Tensor& k2_cache, const Tensor& v_cache,
    const Tensor& k1, const Tensor& k2, const Tensor& v, const std::optional<Tensor>& cache_seqlens,
    const std::optional<Tensor>& cache_batch_idx, const std::optional<Tensor>& cache_leftpad,
    const std::optional<Tensor>& block_table, int64_t dist_threshold, double softmax_scale, int64_t window_left,
    int64_t window_right, double softcap, const std::optional<Tensor>& sinks) {
  constexpr const char* op = "piecewise_kvcache_append";
  const CacheArgs cache{cache_seqlens, cache_batch_idx, cache_leftpad, block_table};
  const AttentionArgs args{
      op,    q1, k1_cache,       v_cache,       &q2,         &k2_cache,    std::nullopt, std::nullopt,
      0,     0,  dist_threshold, softmax_scale, window_left, window_right, softcap,      {.sinks = pointer_to(sinks)},
      &cache};
  AttentionParams params = checked_params(args);
  const NewRows near{{"k1", k1}, k1_cache, params.head_dim}, far{{"k2", k2}, k2_cache, params.head_dim},
      values{{"v", v}, v_cache, params.head_dim_v};
  check(cache_seqlens.has_value(), op, "k1 is given, but cache_seqlens is not; it says where the new rows go.");
  check(k1.dim() == 4, op, "k1 has shape ", text_of(k1.sizes()),
        "; it must be (batch, seqlen_new, heads_k, head_dim).");
  params.cache.appended = k1.size(1);
  for (const NewRows* rows : {&near, &far, &values}) check_new_rows(op, *rows, {"q1", q1}, params);
  check_values_if_asked(args, params);

  const torch::stable::accelerator::DeviceGuard on_device(q1.get_device_index());
  for (const NewRows* rows : {&near, &far, &values}) append(args, params, plain_rows(params, *rows));
  return attend(args, params);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) {
  m.impl("attention_kvcache", TORCH_BOX(&flagattn::attention_kvcache));
  m.impl("attention_kvcache_varlen", TORCH_BOX(&flagattn::attention_kvcache_varlen));
  m.impl("attention_kvcache_append", TORCH_BOX(&flagattn::attention_kvcache_append));
  m.impl("piecewise_kvcache", TORCH_BOX(&flagattn::piecewise_kvcache));
  m.impl("piecewise_kvcache_append", TORCH_BOX(&flagattn::piecewise_kvcache_append));
}
