// Decoding: few query rows against many keys. What the decode kernel takes, and how its work is cut. Pure functions.
#pragma once

#include <cstdint>

#include "attention/heuristics.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn {

// Query rows, those of all heads of a group counted, up to which reading the keys once and transposing nothing pays.
inline constexpr int64_t kMostDecodeColumns = 16;

// Key/value heads of an item.
inline constexpr int64_t kMostDecodeHeads = 16;

// The most query rows of a sequence that the decode kernel takes; `panel` as in cpu_forward_config. No result depends
// on the choice.
constexpr int64_t most_decode_rows(const AttentionParams& params, int64_t panel) {
  const bool plain_scores =
      params.keep.data == nullptr && params.bias.data == nullptr && params.dropout.rng_state == nullptr;
  const int64_t columns = panel < kMostDecodeColumns ? panel : kMostDecodeColumns;
  return plain_scores ? columns / (params.heads_q / params.heads_k) : 0;
}

// Which sequences go to the decode kernel: those of up to `most_rows` query rows, if there are any; the others go to
// the forward kernel.
struct RowShares {
  int64_t most_rows;
  bool few;   // the decode kernel is needed
  bool many;  // the forward kernel is needed
};

// The longest sequence decides for a dense batch. In a packed one, sequences that are decoded stand beside others that
// are prefilled; there a kernel of their own pays if they have keys enough to wake the threads for.
constexpr RowShares row_shares(const AttentionParams& params, int64_t panel) {
  constexpr int64_t kWorthwhileKeys = 1024;
  const int64_t most = most_decode_rows(params, panel);
  if (most > 0 && params.seqlen_q <= most) return {most, true, false};
  if (!params.is_packed() || most == 0) return {most, false, true};
  bool many = false;
  int64_t keys = 0;
  for (int64_t b = 0; b < params.batch; ++b) {
    const Sequence sequence = sequence_of(params, b);
    many |= sequence.seqlen_q > most;
    if (sequence.seqlen_q > 0 && sequence.seqlen_q <= most) keys += sequence.seqlen_k;
  }
  return {most, !many || keys >= kWorthwhileKeys, many};
}

// Work items are the key chunks of a sequence, or all chunks of it together, for some neighbouring key/value heads: in
// memory the heads of a key are neighbours, and who reads several of them reads longer stretches.
struct DecodeSchedule {
  int64_t batch;
  int64_t heads_k;
  int64_t chunks;                 // of the longest sequence
  bool split;                     // one chunk per item
  int64_t heads_per_item;         // the last item of a chunk may have fewer
  int64_t most_rows = INT64_MAX;  // longer sequences are left to another kernel

  constexpr int64_t parts() const { return split ? chunks : 1; }
  constexpr int64_t head_blocks() const { return (heads_k + heads_per_item - 1) / heads_per_item; }
  constexpr int64_t num_items() const { return batch * parts() * head_blocks(); }

  struct Item {
    int64_t sequence;
    int64_t first_head;
    int64_t num_heads;
    int64_t chunk;  // 0 where items are not split
    int64_t group;  // of the items that join: sequence * head_blocks() + block of heads
  };
  constexpr Item item(int64_t index) const {
    const int64_t blocks = head_blocks(), block = index % blocks, rest = index / blocks;
    const int64_t sequence = rest / parts(), first = block * heads_per_item, left = heads_k - first;
    return {sequence, first, left < heads_per_item ? left : heads_per_item, rest % parts(), sequence * blocks + block};
  }
};

constexpr DecodeSchedule decode_schedule(const AttentionParams& params, int64_t num_threads) {
  const int64_t chunks = (params.seqlen_k + kCpuKeyChunk - 1) / kCpuKeyChunk;
  // Every chunk's result is kept until all have joined: not where that would take much memory.
  constexpr int64_t kMostBytes = 32 << 20;
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  const int64_t state = columns * (params.head_dim_v + 2) * static_cast<int64_t>(sizeof(float));
  const bool fits = params.batch * params.heads_k * chunks <= kMostBytes / (state > 0 ? state : 1);
  DecodeSchedule schedule{params.batch, params.heads_k, chunks, chunks > 1 && fits, params.heads_k};
  // The queries of an item's heads stay in L1 beside the keys that stream past; every thread gets an item.
  constexpr int64_t kQueryBytes = 16 * 1024;
  const int64_t query = (columns + 3) / 4 * 4 * params.head_dim * static_cast<int64_t>(sizeof(float));
  const int64_t in_cache = query > 0 && query < kQueryBytes ? kQueryBytes / query : 1;
  const int64_t most = in_cache < kMostDecodeHeads ? in_cache : kMostDecodeHeads;
  if (schedule.heads_per_item > most) schedule.heads_per_item = most;
  while (schedule.heads_per_item > 1 && schedule.num_items() < num_threads) {
    schedule.heads_per_item = (schedule.heads_per_item + 1) / 2;
  }
  return schedule;
}

}  // namespace flagattn
