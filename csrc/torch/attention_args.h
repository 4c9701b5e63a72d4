// The arguments that all attention ops share: checked, and written into AttentionParams. Serves CPU and CUDA.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention/params.h"
#include "torch/score_args.h"
#include "torch/tensor_utils.h"

namespace flagattn {

// What says where in k and v the rows of every sequence lie, if they are caches.
struct CacheArgs {
  const std::optional<Tensor>& seqlens;
  const std::optional<Tensor>& batch_idx;
  const std::optional<Tensor>& leftpad;
  const std::optional<Tensor>& block_table;
};

struct AttentionArgs {
  const char* op;
  const Tensor& q;
  const Tensor& k;
  const Tensor& v;
  const Tensor* q2 = nullptr;  // piecewise attention: the far pair
  const Tensor* k2 = nullptr;
  const std::optional<Tensor>& cu_seqlens_q;
  const std::optional<Tensor>& cu_seqlens_k;
  int64_t max_seqlen_q = 0;
  int64_t max_seqlen_k = 0;
  int64_t dist_threshold = 0;
  double softmax_scale;
  int64_t window_left;
  int64_t window_right;
  double softcap;
  ScoreArgs scores = {};
  const CacheArgs* cache = nullptr;

  const char* name_q() const { return q2 != nullptr ? "q1" : "q"; }
  const char* name_k() const {
    return cache == nullptr ? q2 != nullptr ? "k1" : "k" : q2 != nullptr ? "k1_cache" : "k_cache";
  }
  const char* name_k2() const { return cache == nullptr ? "k2" : "k2_cache"; }
  const char* name_v() const { return cache == nullptr ? "v" : "v_cache"; }
};

// Of (batch, seqlen, heads, head_dim), or packed (total, heads, head_dim). The stride of a dimension of one element,
// which may be any number, is 0: kernels form addresses of rows beyond the end that they do not read, and those stay
// aligned too.
inline HeadsView heads_view(const Argument& argument, void* data) {
  const auto stride = [&](size_t dim) { return argument.sizes[dim] <= 1 ? 0 : argument.strides[dim]; };
  if (argument.strides.size() == 3) return {data, 0, stride(0), stride(1)};
  return {data, stride(0), stride(1), stride(2)};
}
inline HeadsView heads_input(const Argument& argument) { return heads_view(argument, input_data(argument.tensor)); }
inline HeadsView heads_output(const Tensor& tensor) { return heads_view({"", tensor}, output_data(tensor)); }

// Of (batch, heads, seqlen), or packed (heads, total).
inline RowsView rows_view(const Argument& argument, void* data) {
  const Sizes& strides = argument.strides;
  auto* floats = static_cast<float*>(data);
  if (strides.size() == 2) return {floats, 0, strides[0]};
  return {floats, strides[0], strides[1]};
}
inline RowsView rows_input(const Argument& argument) { return rows_view(argument, input_data(argument.tensor)); }
inline RowsView rows_output(const Tensor& tensor) { return rows_view({"", tensor}, output_data(tensor)); }

inline Tensor empty_out(const AttentionParams& params, const Tensor& q) {
  const ScalarType dtype = q.scalar_type();
  if (params.is_packed()) return empty_like_device(q, dtype, {params.total_q, params.heads_q, params.head_dim_v});
  return empty_like_device(q, dtype, {params.batch, params.seqlen_q, params.heads_q, params.head_dim_v});
}

inline Tensor empty_lse(const AttentionParams& params, const Tensor& q) {
  if (params.is_packed()) return empty_like_device(q, ScalarType::Float, {params.heads_q, params.total_q});
  return empty_like_device(q, ScalarType::Float, {params.batch, params.heads_q, params.seqlen_q});
}

// A fresh gradient of an operand: its sizes, contiguous.
inline Tensor empty_gradient(const Tensor& operand) {
  return empty_like_device(operand, operand.scalar_type(), operand.sizes());
}

inline const int32_t* check_cu_seqlens(const char* op, const Argument& cu_seqlens, const Argument& q) {
  check_dtype(op, cu_seqlens, ScalarType::Int);
  check_same_device(op, cu_seqlens, q);
  check(cu_seqlens.dim() == 1 && cu_seqlens.sizes[0] >= 1, op, cu_seqlens.name, " has shape ",
        text_of(cu_seqlens.sizes), "; it must be (batch + 1,).");
  check_last_dim_contiguous(op, cu_seqlens);
  return static_cast<const int32_t*>(input_data(cu_seqlens.tensor));
}

inline const int32_t* check_int32(const char* op, const Argument& argument, const Argument& q,
                                  std::initializer_list<int64_t> sizes, const char* meaning) {
  check_dtype(op, argument, ScalarType::Int);
  check_same_device(op, argument, q);
  check_shape(op, argument, sizes, meaning);
  check_last_dim_contiguous(op, argument);
  return static_cast<const int32_t*>(input_data(argument.tensor));
}

// The rows of q, which may be packed where k and v are not: in a cache.
inline void fill_rows_of_q(const AttentionArgs& args, const Argument& q, AttentionParams& params) {
  if (!args.cu_seqlens_q.has_value()) {
    params.batch = q.sizes[0];
    params.seqlen_q = q.sizes[1];
    return;
  }
  const char* op = args.op;
  const Argument cu_q("cu_seqlens_q", *args.cu_seqlens_q);
  params.cu_seqlens_q = check_cu_seqlens(op, cu_q, q);
  params.batch = cu_q.sizes[0] - 1;
  params.total_q = q.sizes[0];
  // Callers may give any upper bound; work is divided by it.
  params.seqlen_q = std::min(args.max_seqlen_q, params.total_q);
  if (args.cu_seqlens_k.has_value()) {
    const Argument cu_k("cu_seqlens_k", *args.cu_seqlens_k);
    params.cu_seqlens_k = check_cu_seqlens(op, cu_k, q);
    check(cu_k.sizes[0] == cu_q.sizes[0], op, "cu_seqlens_k has ", cu_k.sizes[0], " elements, but cu_seqlens_q has ",
          cu_q.sizes[0], "; both must have batch + 1.");
  }
  check(args.max_seqlen_q >= 0 && args.max_seqlen_k >= 0, op, "max_seqlen_q is ", args.max_seqlen_q,
        " and max_seqlen_k ", args.max_seqlen_k, "; neither may be negative.");
}

// k and v are (rows, capacity, heads, head_dim), or with a block table (pages, page size, heads, head_dim).
inline void fill_cache(const AttentionArgs& args, const Argument& q, const Argument& k, const Argument& v,
                       AttentionParams& params) {
  const char* op = args.op;
  const CacheArgs& given = *args.cache;
  CacheParams& cache = params.cache;
  cache.present = true;
  cache.rows = k.sizes[0];
  cache.capacity = k.sizes[1];
  const char* meaning = "(rows, capacity, heads_k, head_dim)";
  if (given.block_table.has_value()) {
    check(!given.batch_idx.has_value(), op,
          "block_table and cache_batch_idx are both given; pages already say where a sequence lies.");
    const Argument table("block_table", *given.block_table);
    check(table.dim() == 2, op, "block_table has shape ", text_of(table.sizes), "; it must be (batch, pages).");
    check(cache.capacity > 0, op, k.name, " has pages of 0 rows; they must hold at least one.");
    const int64_t pages = table.sizes[1];
    cache.block_table = check_int32(op, table, q, {params.batch, pages}, "(batch, pages)");
    cache.block_table_stride = table.strides[0];
    cache.page_size = cache.capacity;
    cache.capacity = pages * cache.page_size;
    meaning = "(pages, page_size, heads_k, head_dim)";
  } else if (given.batch_idx.has_value()) {
    cache.batch_idx = check_int32(op, {"cache_batch_idx", *given.batch_idx}, q, {params.batch}, "(batch,)");
  } else {
    check(cache.rows >= params.batch, op, k.name, " has ", cache.rows, " batch rows, but ", q.name, " has ",
          params.batch, "; without cache_batch_idx or block_table there must be one for each.");
  }
  check_shape(op, k, {k.sizes[0], k.sizes[1], params.heads_k, params.head_dim}, meaning);
  check_shape(op, v, {k.sizes[0], k.sizes[1], params.heads_k, params.head_dim_v}, meaning);
  if (given.seqlens.has_value()) {
    cache.seqlens = check_int32(op, {"cache_seqlens", *given.seqlens}, q, {params.batch}, "(batch,)");
  }
  if (given.leftpad.has_value()) {
    cache.leftpad = check_int32(op, {"cache_leftpad", *given.leftpad}, q, {params.batch}, "(batch,)");
  }
  params.seqlen_k = cache.capacity;
}

// Everything but out and lse, which the op allocates or receives.
inline AttentionParams checked_params(const AttentionArgs& args) {
  const char* op = args.op;
  const Argument q(args.name_q(), args.q), k(args.name_k(), args.k), v(args.name_v(), args.v);
  const bool packed = args.cu_seqlens_q.has_value(), cached = args.cache != nullptr;
  AttentionParams params;

  // Dtypes and device
  params.dtype = check_floating(op, q);
  for (const Argument* argument : {&k, &v}) {
    check_same_dtype(op, *argument, q);
    check_same_device(op, *argument, q);
  }

  // Layout
  check(args.cu_seqlens_k.has_value() == packed || (packed && cached), op,
        "cu_seqlens_q and cu_seqlens_k must be given together, but only ", packed ? "cu_seqlens_q" : "cu_seqlens_k",
        " is.");
  for (const Argument* argument : {&q, &k, &v}) {
    const bool packs = packed && !(cached && argument != &q);
    check(argument->dim() == (packs ? 3 : 4), op, argument->name, " has shape ", text_of(argument->sizes),
          "; it must be ", packs ? "(total, heads, head_dim) with cu_seqlens." : "(batch, seqlen, heads, head_dim).");
    check_last_dim_contiguous(op, *argument);
  }

  // Shapes
  params.heads_q = q.sizes[q.dim() - 2];
  params.heads_k = k.sizes[k.dim() - 2];
  params.head_dim = q.sizes[q.dim() - 1];
  params.head_dim_v = v.sizes[v.dim() - 1];
  fill_rows_of_q(args, q, params);
  if (cached) {
    fill_cache(args, q, k, v, params);
  } else if (packed) {
    params.total_k = k.sizes[0];
    params.seqlen_k = std::min(args.max_seqlen_k, params.total_k);
    check_shape(op, k, {params.total_k, params.heads_k, params.head_dim}, "(total_k, heads_k, head_dim)");
    check_shape(op, v, {params.total_k, params.heads_k, params.head_dim_v}, "(total_k, heads_k, head_dim_v)");
  } else {
    params.seqlen_k = k.sizes[1];
    check_shape(op, k, {params.batch, params.seqlen_k, params.heads_k, params.head_dim},
                "(batch, seqlen_k, heads_k, head_dim)");
    check_shape(op, v, {params.batch, params.seqlen_k, params.heads_k, params.head_dim_v},
                "(batch, seqlen_k, heads_k, head_dim_v)");
  }
  check(params.heads_k > 0 && params.heads_q > 0 && params.heads_q % params.heads_k == 0, op, q.name, " has ",
        params.heads_q, " heads and ", k.name, " has ", params.heads_k,
        "; the first must be a positive multiple of the second.");
  for (const Argument* argument : {&q, &v}) {
    const int64_t head_dim = argument->sizes[argument->dim() - 1];
    check(head_dim >= 8 && head_dim <= 256 && head_dim % 8 == 0, op, argument->name, " has head_dim ", head_dim,
          "; multiples of 8 up to 256 are supported.");
  }
  params.q = heads_input(q);
  params.k = heads_input(k);
  params.v = heads_input(v);

  // The far pair
  if (args.q2 != nullptr) {
    const Argument q2("q2", *args.q2), k2(args.name_k2(), *args.k2);
    for (const auto& [far, near] : {std::pair{&q2, &q}, std::pair{&k2, &k}}) {
      check_same_dtype(op, *far, *near);
      check_same_device(op, *far, *near);
      bool same = far->sizes.size() == near->sizes.size();
      for (size_t i = 0; same && i < near->sizes.size(); ++i) same = far->sizes[i] == near->sizes[i];
      check(same, op, far->name, " has shape ", text_of(far->sizes), ", but ", near->name, " has ",
            text_of(near->sizes), "; they must agree.");
      check_last_dim_contiguous(op, *far);
    }
    params.q2 = heads_input(q2);
    params.k2 = heads_input(k2);
    params.dist_threshold = args.dist_threshold;
  }

  // Numbers
  check(args.window_left >= -1 && args.window_right >= -1, op, "the window is (", args.window_left, ", ",
        args.window_right, "); each side must be -1 (unbounded) or not negative.");
  // Distances beyond any sequence are all alike; cut off, sums with them stay far from overflow.
  constexpr int64_t kBeyond = int64_t{1} << 40;
  params.mask = {std::min(args.window_left, kBeyond), std::min(args.window_right, kBeyond)};
  params.dist_threshold = std::clamp(params.dist_threshold, -kBeyond, kBeyond);
  params.softmax_scale = static_cast<float>(args.softmax_scale);
  params.softcap = checked_softcap(op, args.softcap);
  check(std::isfinite(params.softmax_scale), op, "softmax_scale is ", args.softmax_scale,
        "; it must be finite in fp32.");
  check_score_args(op, args.scores, q, params);
  return params;
}

// Backward: the forward's outputs and their gradients. Fills params.forward.out, .lse, dout and dlse.
inline void check_backward(const char* op, AttentionBackwardParams& params, const Argument& q, const Argument& dout,
                           const std::optional<Tensor>& dlse, const Argument& out, const Argument& lse) {
  AttentionParams& forward = params.forward;
  const auto check_heads = [&](const Argument& argument) {
    check_same_dtype(op, argument, q);
    check_same_device(op, argument, q);
    check_last_dim_contiguous(op, argument);
    if (forward.is_packed()) {
      check_shape(op, argument, {forward.total_q, forward.heads_q, forward.head_dim_v},
                  "(total_q, heads_q, head_dim_v)");
    } else {
      check_shape(op, argument, {forward.batch, forward.seqlen_q, forward.heads_q, forward.head_dim_v},
                  "(batch, seqlen_q, heads_q, head_dim_v)");
    }
    return heads_input(argument);
  };
  const auto check_rows = [&](const Argument& argument) {
    check_dtype(op, argument, ScalarType::Float);
    check_same_device(op, argument, q);
    check_last_dim_contiguous(op, argument);
    if (forward.is_packed()) {
      check_shape(op, argument, {forward.heads_q, forward.total_q}, "(heads_q, total_q)");
    } else {
      check_shape(op, argument, {forward.batch, forward.heads_q, forward.seqlen_q}, "(batch, heads_q, seqlen_q)");
    }
    return rows_input(argument);
  };
  params.dout = check_heads(dout);
  forward.out = check_heads(out);
  forward.lse = check_rows(lse);
  if (dlse.has_value()) params.dlse = check_rows({"dlse", *dlse});
}

}  // namespace flagattn
