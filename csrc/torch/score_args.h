// What may join the scores of attention, as the ops receive it: masks, biases, ALiBi, sinks, dropout.
#pragma once

#include <cmath>

#include "attention/params.h"
#include "torch/tensor_utils.h"

namespace flagattn {

// Null: not given. Borrows the tensors.
struct ScoreArgs {
  const Tensor* bias = nullptr;          // (batch or 1, heads_q or 1, seqlen_q or 1, seqlen_k or 1), floating
  const Tensor* keep = nullptr;          // the same, bool
  const Tensor* alibi_slopes = nullptr;  // (heads_q) or (batch, heads_q), float32
  const Tensor* sinks = nullptr;         // (heads_q), float32
  const Tensor* rng_state = nullptr;     // (2), int64: seed and offset
  double dropout_p = 0.0;
};

inline const Tensor* pointer_to(const std::optional<Tensor>& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

// Of a tensor whose sizes are the scores' or 1.
inline ScoresView scores_view(const Argument& argument, void* data) {
  int64_t strides[4];
  for (int i = 0; i < 4; ++i) strides[i] = argument.sizes[i] == 1 ? 0 : argument.strides[i];
  return {data, strides[0], strides[1], strides[2], strides[3]};
}

inline ScoresView check_scores(const char* op, const Argument& argument, const AttentionParams& params,
                               const Argument& q) {
  check_same_device(op, argument, q);
  check(!params.is_packed(), op, argument.name, " is given with cu_seqlens; it needs dense batches.");
  const int64_t whole[] = {params.batch, params.heads_q, params.seqlen_q, params.seqlen_k};
  bool fits = argument.dim() == 4;
  for (int i = 0; fits && i < 4; ++i) fits = argument.sizes[i] == 1 || argument.sizes[i] == whole[i];
  check(fits, op, argument.name, " has shape ", text_of(argument.sizes),
        "; each size must be 1 or that of (batch, heads_q, seqlen_q, seqlen_k) = ", text_of(Sizes(whole, 4)), ".");
  check(argument.sizes[3] == 1 || argument.strides[3] == 1, op, argument.name, " of shape ", text_of(argument.sizes),
        " has strides ", text_of(argument.strides), "; its last dimension must be contiguous.");
  return scores_view(argument, input_data(argument.tensor));
}

inline void check_score_args(const char* op, const ScoreArgs& args, const Argument& q, AttentionParams& params) {
  if (args.bias != nullptr) {
    const Argument bias("bias", *args.bias);
    params.bias_dtype = check_floating(op, bias);
    params.bias = check_scores(op, bias, params, q);
  }
  if (args.keep != nullptr) {
    const Argument keep("keep", *args.keep);
    check_dtype(op, keep, ScalarType::Bool);
    params.keep = check_scores(op, keep, params, q);
  }
  if (args.alibi_slopes != nullptr) {
    const Argument slopes("alibi_slopes", *args.alibi_slopes);
    check_dtype(op, slopes, ScalarType::Float);
    check_same_device(op, slopes, q);
    const bool by_head = slopes.dim() == 1 && slopes.sizes[0] == params.heads_q;
    const bool by_sequence = slopes.dim() == 2 && slopes.sizes[0] == params.batch && slopes.sizes[1] == params.heads_q;
    check(by_head || by_sequence, op, "alibi_slopes has shape ", text_of(slopes.sizes),
          "; it must be (heads_q,) or (batch, heads_q) of ", params.batch, " sequences and ", params.heads_q,
          " heads.");
    check_last_dim_contiguous(op, slopes);
    params.alibi = {static_cast<const float*>(input_data(slopes.tensor)), by_sequence ? slopes.strides[0] : 0};
  }
  if (args.sinks != nullptr) {
    const Argument sinks("sinks", *args.sinks);
    check_dtype(op, sinks, ScalarType::Float);
    check_same_device(op, sinks, q);
    check_shape(op, sinks, {params.heads_q}, "(heads_q,)");
    check_last_dim_contiguous(op, sinks);
    params.sinks = static_cast<const float*>(input_data(sinks.tensor));
  }
  check(args.dropout_p >= 0.0 && args.dropout_p <= 1.0, op, "dropout_p is ", args.dropout_p,
        "; it must be from 0 to 1.");
  if (args.dropout_p > 0.0) {
    check(args.rng_state != nullptr, op, "dropout_p is ", args.dropout_p, ", but there is no rng_state.");
    const Argument rng_state("rng_state", *args.rng_state);
    check_dtype(op, rng_state, ScalarType::Long);
    check_same_device(op, rng_state, q);
    check_shape(op, rng_state, {2}, "(seed, offset)");
    check_last_dim_contiguous(op, rng_state);
    params.dropout.rng_state = static_cast<const int64_t*>(input_data(rng_state.tensor));
    const double words = std::ceil(args.dropout_p * 4294967296.0);
    params.dropout.last_dropped = static_cast<uint32_t>(words - 1.0);
    params.dropout.scale = args.dropout_p < 1.0 ? static_cast<float>(1.0 / (1.0 - args.dropout_p)) : 0.0f;
  }
}

}  // namespace flagattn
