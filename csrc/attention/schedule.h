// Which work item computes what: pure functions, unit-tested on the host.
#pragma once

#include <cstdint>

#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn {

// One sequence of a dense, packed or cached batch: where its rows start and how many there are.
struct Sequence {
  int64_t batch;    // index for batch strides: 0 where operands are packed
  int64_t first_q;  // row of the operand that is row 0 of the sequence
  int64_t first_k;
  int64_t seqlen_q;
  int64_t seqlen_k;
  int64_t batch_k = 0;             // the same index for k and v
  const int32_t* pages = nullptr;  // key row r is row r % page_size of batch row pages[r / page_size]
  int64_t page_size = 0;
};

// Rows of a sequence's stretch of the cache that are in use before new ones are appended, left padding included.
constexpr int64_t cached_rows(const AttentionParams& params, int64_t index) {
  if (params.cu_seqlens_k != nullptr) {
    return static_cast<int64_t>(params.cu_seqlens_k[index + 1]) - params.cu_seqlens_k[index];
  }
  return params.cache.seqlens != nullptr ? params.cache.seqlens[index] : params.cache.capacity;
}

constexpr Sequence sequence_of(const AttentionParams& params, int64_t index) {
  if (params.has_cache()) {
    const CacheParams& cache = params.cache;
    const int64_t leftpad = cache.leftpad != nullptr ? cache.leftpad[index] : 0;
    const int64_t keys = cached_rows(params, index) + cache.appended - leftpad;
    Sequence sequence{index, 0, leftpad, params.seqlen_q, keys, index};
    if (params.is_packed()) {
      sequence.batch = 0;
      sequence.first_q = params.cu_seqlens_q[index];
      sequence.seqlen_q = params.cu_seqlens_q[index + 1] - sequence.first_q;
    }
    if (cache.batch_idx != nullptr) sequence.batch_k = cache.batch_idx[index];
    if (cache.block_table != nullptr) {
      sequence.pages = cache.block_table + index * cache.block_table_stride;
      sequence.page_size = cache.page_size;
    }
    return sequence;
  }
  if (!params.is_packed()) return {index, 0, 0, params.seqlen_q, params.seqlen_k, index};
  const int64_t first_q = params.cu_seqlens_q[index], first_k = params.cu_seqlens_k[index];
  return {0, first_q, first_k, params.cu_seqlens_q[index + 1] - first_q, params.cu_seqlens_k[index + 1] - first_k, 0};
}

// Where row `row` of a sequence's keys and values lies in k and v, and how many rows from there on follow each other.
struct KeyPlace {
  int64_t batch;
  int64_t row;
  int64_t count;

  constexpr int64_t offset(const HeadsView& view) const { return batch * view.batch_stride + row * view.row_stride; }
};

constexpr KeyPlace place_of_row(const Sequence& sequence, int64_t row) {
  if (sequence.pages == nullptr) return {sequence.batch_k, row, sequence.first_k + sequence.seqlen_k - row};
  const int64_t in_page = row % sequence.page_size;
  return {sequence.pages[row / sequence.page_size], in_page, sequence.page_size - in_page};
}

// Calls body(done, count, place) for every stretch of keys [key, key + num_keys) that lie at equal distances; `done`
// keys lie before it.
template <typename Body>
constexpr void for_each_stretch(const Sequence& sequence, int64_t key, int64_t num_keys, Body&& body) {
  for (int64_t done = 0; done < num_keys;) {
    const KeyPlace place = place_of_row(sequence, sequence.first_k + key + done);
    const int64_t count = place.count < num_keys - done ? place.count : num_keys - done;
    body(done, count, place);
    done += count;
  }
}

// The query rows of a group's heads are numbered as columns, row by row: column c is row c / group of the group's head
// c % group. Neighbouring columns see nearly the same keys, and one key/value tile serves the whole group.
struct ForwardItem {
  int64_t group;  // sequence * heads_k + head_k
  int64_t sequence;
  int64_t head_k;
  int64_t first_column;
};

// Items of one group are neighbours: who gets several in a row packs its keys once. Later columns see more keys under a
// causal mask and come first: what is left for the end is light.
struct ForwardSchedule {
  CpuForwardConfig config;
  int64_t batch;
  int64_t heads_k;
  int64_t least_rows = 0;  // shorter sequences are left to another kernel

  constexpr int64_t num_items() const { return batch * heads_k * config.items_per_group; }

  constexpr ForwardItem item(int64_t index) const {
    const int64_t group = index / config.items_per_group;
    const int64_t part = config.items_per_group - 1 - index % config.items_per_group;
    return {group, group / heads_k, group % heads_k, part * config.columns_per_item};
  }

  // The end of the items from `index` on, before `end`, that are led past the keys together: of one group, so that
  // their columns are neighbours, item(stop - 1) having the first ones.
  constexpr int64_t stop(int64_t index, int64_t end) const {
    const int64_t group_end = (index / config.items_per_group + 1) * config.items_per_group;
    const int64_t most = index + config.items_at_once < group_end ? index + config.items_at_once : group_end;
    return most < end ? most : end;
  }
};

}  // namespace flagattn
