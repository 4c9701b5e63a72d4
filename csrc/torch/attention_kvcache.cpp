// Attention over caches on the CPU: check everything, rotate and append the new rows, attend.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "attention/cache_checks.h"
#include "attention/cpu/attention.h"
#include "attention/cpu/cache.h"
#include "rotary/cpu/rotary.h"
#include "torch/attention_cpu.h"
#include "torch/executor.h"
#include "torch/new_rows.h"
#include "torch/rotary_args.h"

namespace flagattn {
namespace {

std::tuple<Tensor, Tensor> attend(const AttentionArgs& args, AttentionParams& params) {
  Tensor out = empty_out(params, args.q);
  Tensor lse = empty_lse(params, args.q);
  params.out = heads_output(out);
  params.lse = rows_output(lse);
  check(cpu::run_attention_forward(params, torch_threads()), args.op);
  define_rows_behind(params, out);
  return {std::move(out), std::move(lse)};
}

std::tuple<Tensor, Tensor> attend_cache(const AttentionArgs& args) {
  AttentionParams params = checked_params(args);
  check_values(args, params);
  check(check_cache(params), args.op);
  return attend(args, params);
}

Tensor rotated(const RotaryArgs& args, const std::vector<int64_t>& positions) {
  RotaryParams params = checked_rotary_params(args);
  Tensor y = empty_like_device(args.x, args.x.scalar_type(), args.x.sizes());
  params.y = rotary_operand({"y", y}, output_data(y));
  params.positions64 = positions.data();
  params.positions_batch_stride = params.seqlen;
  check(cpu::run_rotary(params, torch_threads()), args.op);
  return y;
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
  check(cache_seqlens.has_value(), op, "k is given, but cache_seqlens is not; it says where the new rows go.");
  check(rotary_cos.has_value() == rotary_sin.has_value(), op, "rotary_cos and rotary_sin must be given together.");
  const NewRows keys{{"k", k}, k_cache, params.head_dim}, values{{"v", v}, v_cache, params.head_dim_v};
  check(k.dim() == 4, op, "k has shape ", text_of(k.sizes()), "; it must be (batch, seqlen_new, heads_k, head_dim).");
  params.cache.appended = k.size(1);
  check_new_rows(op, keys, {"q", q}, params);
  check_new_rows(op, values, {"q", q}, params);
  check(check_cache(params), op);

  // Positions outside the tables are found here, before anything is written.
  std::optional<Tensor> rotated_q, rotated_k;
  if (rotary_cos.has_value()) {
    const bool own_positions = params.mask.window_left >= 0 || params.mask.window_right >= 0;
    rotated_k = rotated({op, k, *rotary_cos, *rotary_sin, rotary_interleaved, false},
                        positions_behind(params, params.cache.appended, true));
    rotated_q = rotated({op, q, *rotary_cos, *rotary_sin, rotary_interleaved, false},
                        positions_behind(params, params.seqlen_q, own_positions));
    params.q = heads_input({"q", *rotated_q});
  }
  const ParallelFor threads = torch_threads();
  cpu::append_to_cache(params, heads_input({"k", rotated_k.has_value() ? *rotated_k : k}), heads_output(k_cache),
                       params.head_dim, threads);
  cpu::append_to_cache(params, heads_input({"v", v}), heads_output(v_cache), params.head_dim_v, threads);
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
  check(cache_seqlens.has_value(), op, "k1 is given, but cache_seqlens is not; it says where the new rows go.");
  check(k1.dim() == 4, op, "k1 has shape ", text_of(k1.sizes()),
        "; it must be (batch, seqlen_new, heads_k, head_dim).");
  params.cache.appended = k1.size(1);
  const NewRows fresh[] = {{{"k1", k1}, k1_cache, params.head_dim},
                           {{"k2", k2}, k2_cache, params.head_dim},
                           {{"v", v}, v_cache, params.head_dim_v}};
  for (const NewRows& rows : fresh) check_new_rows(op, rows, {"q1", q1}, params);
  check(check_cache(params), op);
  for (const NewRows& rows : fresh) {
    cpu::append_to_cache(params, heads_input(rows.rows), heads_output(rows.cache), rows.head_dim, torch_threads());
  }
  return attend(args, params);
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("attention_kvcache", TORCH_BOX(&flagattn::attention_kvcache));
  m.impl("attention_kvcache_varlen", TORCH_BOX(&flagattn::attention_kvcache_varlen));
  m.impl("attention_kvcache_append", TORCH_BOX(&flagattn::attention_kvcache_append));
  m.impl("piecewise_kvcache", TORCH_BOX(&flagattn::piecewise_kvcache));
  m.impl("piecewise_kvcache_append", TORCH_BOX(&flagattn::piecewise_kvcache_append));
}
