// What the forward kernel does with a problem: its tiles, and in which order blocks take them. Pure functions of
// shapes.
#pragma once

#include <cstdint>

#include "arch/host_device.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Tiles per head dim. Four warps of 32 query rows each: a warp's fragment of K or V then serves two matrix products. At
// head dim 128 scores and output take 192 accumulator registers of 255. Three slots of K or V leave room for two blocks
// on an A100's multiprocessor (164 KB). For head dim 64 twice the keys would halve the reloads of queries, but spill.
struct ForwardTile {
  int block_m;  // query rows
  int block_n;  // keys
  int warps;
  int slots;  // of the ring that K and V tiles pass through
};

constexpr ForwardTile forward_tile(int /*kernel_head_dim*/) { return {128, 64, 4, 3}; }

// The instantiation that serves these head dims: columns beyond the operand's are zeros. 0 if there is none.
constexpr int forward_kernel_head_dim(int64_t head_dim, int64_t head_dim_v) {
  const int64_t widest = head_dim > head_dim_v ? head_dim : head_dim_v;
  return widest <= 64 ? 64 : widest <= 128 ? 128 : 0;
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
  const int64_t bytes_per_kv_head = params.seqlen_k * (params.head_dim + params.head_dim_v) * size_of(params.dtype);
  const int64_t kv_heads = bytes_per_kv_head > 0 ? kSectionBytes / bytes_per_kv_head : params.batch * params.heads_k;
  const int64_t wanted = (kv_heads > 1 ? kv_heads : 1) * (params.heads_q / params.heads_k);
  const int64_t query_tiles = (params.seqlen_q + block_m - 1) / block_m;
  return {static_cast<int>(query_tiles == 0 && params.is_packed() ? 1 : query_tiles), static_cast<int>(params.heads_q),
          static_cast<int>(sequences), static_cast<int>(wanted < pairs ? wanted : pairs)};
}

}  // namespace flagattn::sm80
