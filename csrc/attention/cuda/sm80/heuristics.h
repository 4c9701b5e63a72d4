// What the forward kernel does with a problem: its tiles, and in which order blocks take them. Pure functions of
// shapes.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "arch/host_device.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Tiles per head dim. Up to 128, four warps of 32 query rows each: a warp's fragment of K or V then serves two matrix
// products. At head dim 128 scores and output take 192 accumulator registers of 255; beyond it, and where terms join
// the scores, there is room for 16 rows a warp. Three slots of K or V leave room for two blocks on an A100's
// multiprocessor (164 KB), and one on those with 100 KB.
struct ForwardTile {
  int block_m;  // query rows
  int block_n;  // keys
  int warps;
  int slots;  // of the ring that K and V tiles pass through
};

constexpr ForwardTile forward_tile(int kernel_head_dim, bool has_terms = false) {
  if (kernel_head_dim > 128) return {64, 32, 4, 3};
  return {has_terms ? 64 : 128, 64, 4, 3};
}

// The instantiation that serves these head dims: columns beyond the operand's are zeros. 0 if there is none.
constexpr int forward_kernel_head_dim(int64_t head_dim, int64_t head_dim_v) {
  const int64_t widest = head_dim > head_dim_v ? head_dim : head_dim_v;
  for (const int width : {64, 96, 128, 192, 256}) {
    if (widest <= width) return width;
  }
  return 0;
}

// Whether the scores need the kernel that adds terms to them or drops weights.
constexpr bool has_score_terms(const AttentionParams& params) {
  return params.bias.data != nullptr || params.keep.data != nullptr || params.alibi.slopes != nullptr ||
         params.dropout.rng_state != nullptr;
}

// Block -> (query tile, head, batch). Heads are dealt in sections whose keys and values fit into L2 together; within a
// section the last query tiles come first, as under a causal mask they are the longest and should not be left to the
// end. Packed problems have one more "sequence" than their batch: the rows behind the last one, which get empty
// results.
struct ForwardSchedule {
  int query_tiles;
  int heads;
  int sequences;
  int pairs_per_section;  // of (batch, head); 1 to all of them

  struct Work {
    int query_tile;
    int head;
    int sequence;
  };

  // More than a grid can hold are refused at launch, so that the rest may count in 32 bits.
  constexpr int64_t blocks() const { return int64_t{query_tiles} * heads * sequences; }

  FLAGATTN_HOST_DEVICE constexpr Work work_of(int block) const {
    const int section = block / (pairs_per_section * query_tiles);
    const int first_pair = section * pairs_per_section;
    const int pairs_left = heads * sequences - first_pair;
    const int pairs = pairs_left < pairs_per_section ? pairs_left : pairs_per_section;
    const int within = block - first_pair * query_tiles;
    const int pair = first_pair + within % pairs;
    return {query_tiles - 1 - within / pairs, pair % heads, pair / heads};
  }
};

constexpr ForwardSchedule forward_schedule(const AttentionParams& params, int block_m) {
  constexpr int64_t kSectionBytes = 16 << 20;  // of keys and values: under half of an A100's or H100's L2
  const int64_t sequences = params.batch + params.is_packed();
  const int64_t pairs = sequences * params.heads_q;
  const int64_t operands = params.is_piecewise() ? 2 : 1;
  const int64_t bytes_per_kv_head =
      params.seqlen_k * (operands * params.head_dim + params.head_dim_v) * size_of(params.dtype);
  const int64_t kv_heads = bytes_per_kv_head > 0 ? kSectionBytes / bytes_per_kv_head : params.batch * params.heads_k;
  const int64_t wanted = (kv_heads > 1 ? kv_heads : 1) * (params.heads_q / params.heads_k);
  const int64_t query_tiles = (params.seqlen_q + block_m - 1) / block_m;
  return {static_cast<int>(query_tiles == 0 && params.is_packed() ? 1 : query_tiles), static_cast<int>(params.heads_q),
          static_cast<int>(sequences), static_cast<int>(wanted < pairs ? wanted : pairs)};
}

}  // namespace flagattn::sm80
