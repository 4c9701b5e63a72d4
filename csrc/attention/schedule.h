// Which work item computes what: pure functions, unit-tested on the host.
#pragma once

#include <cstdint>

#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn {

// One sequence of a dense or packed batch: where its rows start and how many there are.
struct Sequence {
  int64_t batch;    // index for batch strides: 0 where operands are packed
  int64_t first_q;  // row of the operand that is row 0 of the sequence
  int64_t first_k;
  int64_t seqlen_q;
  int64_t seqlen_k;
};

constexpr Sequence sequence_of(const AttentionParams& params, int64_t index) {
  if (!params.is_packed()) return {index, 0, 0, params.seqlen_q, params.seqlen_k};
  const int64_t first_q = params.cu_seqlens_q[index], first_k = params.cu_seqlens_k[index];
  return {0, first_q, first_k, params.cu_seqlens_q[index + 1] - first_q, params.cu_seqlens_k[index + 1] - first_k};
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
