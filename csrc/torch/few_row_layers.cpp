// The two halves of a decoder layer on few rows, as generation has them, on the CPU: one op each for what would be six
// and four, because there the way through Python and the dispatcher takes as long as reading the weights.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "activation/cpu/activation.h"
#include "norm/cpu/norm.h"
#include "torch/activation_args.h"
#include "torch/attention_kvcache_cpu.h"
#include "torch/few_row_args.h"
#include "torch/norm_args.h"
#include "torch/rotary_op.h"

namespace flagattn {
namespace {

using Tensors = std::vector<Tensor>;

// The memory of a contiguous tensor from an element on, seen otherwise.
Tensor view_of(const Tensor& tensor, std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides,
               int64_t first) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), static_cast<int64_t>(sizes.size()),
                                                               sizes.begin(), strides.begin(), first, &handle));
  return Tensor(handle);
}

Tensor normed(const Tensor& x, const Tensor& weight, double eps) {
  const auto run = [](const RmsNormParams& params, const Tensor&) {
    return cpu::run_rms_norm(params, torch_threads());
  };
  return std::get<0>(rms_norm_by(run, x, weight, eps, /*offset=*/0.0, /*round_normalised=*/true));
}

// Of (..., 2 * cols): the first half gates the second.
Tensor gated(const Tensor& both) {
  const auto run = [](const SwigluParams& params, const Tensor&) { return cpu::run_swiglu(params, torch_threads()); };
  const Sizes sizes = both.sizes();
  const int64_t batch = sizes[0], seqlen = sizes[1], width = sizes[2], cols = width / 2;
  const auto half = [&](int64_t first) {
    return view_of(both, {batch, seqlen, cols}, {seqlen * width, width, 1}, first);
  };
  return swiglu_by(run, half(0), half(cols));
}

void check_maps(const char* op, const Tensors& weights, const Tensors& biases) {
  check(weights.size() == 3, op, "weights has ", weights.size(), " tensors; it must have 3.");
  check(biases.empty() || biases.size() == 3, op, "biases has ", biases.size(), " tensors; it must have 3 or none.");
  for (const Tensor& weight : weights) {
    check(weight.dim() == 2, op, "weights has a tensor of shape ", text_of(weight.sizes()), "; they must be matrices.");
  }
}

Tensor few_row_gated_mlp(const Tensor& x, const Tensor& norm_weight, double eps, const Tensors& weights,
                         const Tensors& biases) {
  constexpr const char* op = "few_row_gated_mlp";
  check(x.dim() == 3, op, "x has shape ", text_of(x.sizes()), "; it must be (batch, seqlen, features).");
  check_maps(op, weights, biases);
  const std::span<const Tensor> all_weights(weights), all_biases(biases);
  const bool biased = !biases.empty();
  check(weights[0].size(0) == weights[1].size(0), op, "weights of gate and up have ", weights[0].size(0), " and ",
        weights[1].size(0), " rows; they must be as many.");
  const Tensor both = few_row_linear_of(op, normed(x, norm_weight, eps), all_weights.first(2),
                                        biased ? all_biases.first(2) : all_biases);
  return few_row_linear_of(op, gated(both), all_weights.last(1), biased ? all_biases.last(1) : all_biases);
}

Tensor few_row_attention(const Tensor& x, const Tensor& norm_weight, double eps, const Tensors& weights,
                         const Tensors& biases, const Tensor& out_weight, const OptionalTensor& out_bias,
                         const Tensor& cos, const Tensor& sin, const Tensor& k_cache, const Tensor& v_cache,
                         const Tensor& cache_seqlens, const OptionalTensor& cache_leftpad, double softmax_scale,
                         int64_t window_left, int64_t window_right, double softcap) {
  constexpr const char* op = "few_row_attention";
  check(x.dim() == 3, op, "x has shape ", text_of(x.sizes()), "; it must be (batch, seqlen, features).");
  check(k_cache.dim() == 4 && v_cache.dim() == 4, op, "k_cache and v_cache have shapes ", text_of(k_cache.sizes()),
        " and ", text_of(v_cache.sizes()), "; they must be (batch, seqlen, heads_k, head_dim).");
  check_maps(op, weights, biases);
  const int64_t batch = x.size(0), seqlen = x.size(1), heads_k = k_cache.size(2), head_dim = k_cache.size(3);
  const int64_t head_dim_v = v_cache.size(3), heads_q = head_dim > 0 ? weights[0].size(0) / head_dim : 0;
  const Tensor together = few_row_linear_of(op, normed(x, norm_weight, eps), weights, biases);
  const int64_t width = together.size(2), first_k = heads_q * head_dim, first_v = first_k + heads_k * head_dim;
  check(weights[0].size(0) == first_k && weights[1].size(0) == first_v - first_k &&
            weights[2].size(0) == heads_k * head_dim_v,
        op, "weights of queries, keys and values have ", weights[0].size(0), ", ", weights[1].size(0), " and ",
        weights[2].size(0), " rows; they must be those of heads like the caches'.");
  const auto heads = [&](int64_t count, int64_t dim, int64_t first) {
    return view_of(together, {batch, seqlen, count, dim}, {seqlen * width, width, dim, 1}, first);
  };
  const auto rotate = [](const RotaryParams& params, const Tensor&) {
    return cpu::run_rotary(params, torch_threads());
  };
  apply_rotary_in_place_by(rotate, heads(heads_q + heads_k, head_dim, 0), cos, sin, std::nullopt, false, false);
  const Tensor out = std::get<0>(CacheOps<CachesOnCpu>::attention_kvcache_append(
      heads(heads_q, head_dim, 0), k_cache, v_cache, heads(heads_k, head_dim, first_k),
      heads(heads_k, head_dim_v, first_v), std::nullopt, std::nullopt, false, cache_seqlens, std::nullopt,
      cache_leftpad, std::nullopt, softmax_scale, window_left, window_right, softcap, std::nullopt, std::nullopt));
  const int64_t features = heads_q * head_dim_v;
  const Tensor rows = view_of(out, {batch, seqlen, features}, {seqlen * features, features, 1}, 0);
  const auto one = [](const Tensor& tensor) { return std::span(&tensor, 1); };
  return few_row_linear_of(op, rows, one(out_weight), out_bias ? one(*out_bias) : std::span<const Tensor>());
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) {
  m.impl("few_row_gated_mlp", TORCH_BOX(&flagattn::few_row_gated_mlp));
  m.impl("few_row_attention", TORCH_BOX(&flagattn::few_row_attention));
}
