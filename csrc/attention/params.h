// Everything an attention kernel is told, on every device. Filled by csrc/torch, read by CPU, CUDA and tests.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"

namespace flagattn {

// A (batch, seqlen, heads, head_dim) operand; the last dimension is contiguous, the other strides count
// elements and are free. Packed (varlen) operands are (total, heads, head_dim) and ignore batch_stride.
struct HeadsView {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// A (batch, heads, seqlen) fp32 tensor of row statistics; packed: (heads, total) with batch_stride ignored.
struct RowsView {
  float* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;  // the row stride is 1
};

// Query row i sees key j iff  i + Sk - Sq - window_left <= j <= i + Sk - Sq + window_right;  kUnbounded lifts a side.
// Causal is window_right = 0.
struct MaskParams {
  static constexpr int64_t kUnbounded = -1;
  int64_t window_left = kUnbounded;
  int64_t window_right = kUnbounded;
};

// An operand that is read as (batch, heads_q, seqlen_q, seqlen_k): one element for every score. A stride of 0 repeats
// it along its dimension; key_stride is 0 or 1. Dense batches only.
struct ScoresView {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  int64_t key_stride = 0;
};

// Linear biases (ALiBi): -slope * |i + Sk - Sq - j| joins the score of row i and key j. One slope per query head.
struct AlibiParams {
  const float* slopes = nullptr;  // (batch or 1, heads_q); null: none
  int64_t batch_stride = 0;       // 0: the same slopes for every sequence
};

// Weights are dropped after the softmax's sums are taken, and the others multiplied by `scale`. A weight's random word
// is word key % 4 of Philox-4x32-10 with key rng_state[0] and counter (key / 4, row, rng_state[1] + batch * heads_q +
// head), of 32, 32 and 64 bits (arch/philox.h): it is a function of the weight's place alone.
struct DropoutParams {
  const int64_t* rng_state = nullptr;  // (seed, offset); null: none
  uint32_t last_dropped = 0;           // words up to this one drop their weight
  float scale = 1.0f;                  // 1 / (1 - p)
};

// Keys and values that lie in a cache. Sequence b has the keys leftpad[b] to seqlens[b] + appended - 1 of its stretch
// of the cache: batch row batch_idx[b] of k and v or, paged, row r in row r % page_size of page block_table[b][r /
// page_size], a page being a batch row of k and v.
struct CacheParams {
  bool present = false;
  int64_t rows = 0;                      // batch rows, or pages, of k and v
  int64_t capacity = 0;                  // rows of a sequence's stretch
  int64_t appended = 0;                  // rows that this call has written behind seqlens
  const int32_t* seqlens = nullptr;      // (batch); null: capacity, or by cu_seqlens_k
  const int32_t* batch_idx = nullptr;    // (batch); null: b
  const int32_t* leftpad = nullptr;      // (batch); null: 0
  const int32_t* block_table = nullptr;  // (batch, pages of a sequence), each row contiguous; null: not paged
  int64_t block_table_stride = 0;
  int64_t page_size = 0;
};

struct AttentionParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0;
  int64_t heads_q = 0;
  int64_t heads_k = 0;   // divides heads_q; query head h reads key/value head h / (heads_q / heads_k)
  int64_t seqlen_q = 0;  // packed: an upper bound over the batch
  int64_t seqlen_k = 0;
  int64_t head_dim = 0;    // of q and k
  int64_t head_dim_v = 0;  // of v and out

  HeadsView q, k, v;
  HeadsView out;
  RowsView lse;  // natural log; -inf on rows that see no key

  // (batch + 1) prefix sums of the sequence lengths; null for dense operands. Packed q and k have total_q and total_k
  // rows, of which the last may belong to no sequence. Where k and v lie in a cache q alone may be packed, and
  // cu_seqlens_k, if it is there, says how many rows of the cache each sequence has, in place of cache.seqlens.
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  int64_t total_q = 0;
  int64_t total_k = 0;

  float softmax_scale = 1.0f;
  float softcap = 0.0f;  // scores become softcap * tanh(score / softcap); 0 switches it off
  MaskParams mask;

  // Piecewise attention: with d = i + Sk - Sq - j, a score is q2 . k2 where d >= dist_threshold and q . k elsewhere.
  // q2, k2 have the shapes of q, k. Plain attention leaves q2.data null.
  HeadsView q2, k2;
  int64_t dist_threshold = 0;

  // What else joins the scores, in this order: softcap, bias and ALiBi, masks, softmax; sinks join its denominator, and
  // dropout its result. -inf as a bias hides a key as `keep` does.
  ScoresView keep;  // bool: a row sees the keys where it is true
  ScoresView bias;  // added to the scores, in units of the exponent
  DType bias_dtype = DType::kFloat32;
  AlibiParams alibi;
  const float* sinks = nullptr;  // (heads_q): a key of this score and of value 0 that every row sees
  DropoutParams dropout;

  CacheParams cache;

  constexpr bool has_cache() const { return cache.present; }
  constexpr bool is_piecewise() const { return q2.data != nullptr; }
  constexpr bool is_packed() const { return cu_seqlens_q != nullptr; }
};

// Gradients of (out, lse) with respect to q, k, v (and q2, k2). `forward` carries the forward's inputs and outputs.
struct AttentionBackwardParams {
  AttentionParams forward;
  HeadsView dout;
  RowsView dlse;  // data null: no gradient flows into the LSE
  HeadsView dq, dk, dv;
  HeadsView dq2, dk2;  // piecewise only
  // With respect to the bias: in its dtype and with its strides, where 0 sums over the dimension. data null: not asked
  // for.
  ScoresView dbias;
  // Where there are sinks: (heads_q), and every row's share of its head's gradient, which are summed last.
  float* dsinks = nullptr;
  RowsView dsink_shares;
  // CUDA only: memory from a multiple of 16 bytes on, of the size that the backward asks for.
  float* workspace = nullptr;
};

}  // namespace flagattn
