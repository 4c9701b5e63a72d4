// Decoding: few query rows against many keys. What the decode kernel takes, and how its work is cut. Pure functions.
#pragma once

#include <cstdint>

#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn {

// Query rows, those of all heads of a group counted, up to which reading the keys once and transposing nothing pays.
inline constexpr int64_t kMostDecodeColumns = 16;

// `panel`: as in cpu_forward_config. No result depends on the choice.
constexpr bool decodes(const AttentionParams& params, int64_t panel) {
  const bool plain_scores =
      params.keep.data == nullptr && params.bias.data == nullptr && params.dropout.rng_state == nullptr;
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  return plain_scores && columns <= panel && columns <= kMostDecodeColumns;
}

// Work items are the key chunks of every (sequence, key/value head), or all chunks of it together. The heads of a chunk
// are neighbours, since in memory their keys are.
struct DecodeSchedule {
  int64_t batch;
  int64_t heads_k;
  int64_t chunks;  // of the longest sequence
  bool split;      // one chunk per item

  constexpr int64_t parts() const { return split ? chunks : 1; }
  constexpr int64_t num_items() const { return batch * parts() * heads_k; }

  struct Item {
    int64_t sequence;
    int64_t head_k;
    int64_t chunk;  // 0 where items are not split
    int64_t group;  // sequence * heads_k + head_k
  };
  constexpr Item item(int64_t index) const {
    const int64_t head_k = index % heads_k, rest = index / heads_k;
    const int64_t sequence = rest / parts();
    return {sequence, head_k, rest % parts(), sequence * heads_k + head_k};
  }
};

constexpr DecodeSchedule decode_schedule(const AttentionParams& params) {
  const int64_t chunks = (params.seqlen_k + kCpuKeyChunk - 1) / kCpuKeyChunk;
  // Every chunk's result is kept until all have joined: not where that would take much memory.
  constexpr int64_t kMostBytes = 32 << 20;
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  const int64_t state = columns * (params.head_dim_v + 2) * static_cast<int64_t>(sizeof(float));
  const bool fits = params.batch * params.heads_k * chunks <= kMostBytes / (state > 0 ? state : 1);
  return {params.batch, params.heads_k, chunks, chunks > 1 && fits};
}

}  // namespace flagattn
