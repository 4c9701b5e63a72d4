// What a block of the decode kernel computes once and rarely reads: it waits in shared memory, as the main loop needs
// the registers.
#pragma once

#include "attention/cuda/sm80/cache_rows.cuh"
#include "attention/cuda/sm80/decode_schedule.h"
#include "attention/cuda/sm80/not_finite.cuh"
#include "attention/cuda/sm80/part_plan.cuh"

namespace flagattn::sm80 {

struct DecodeArguments {
  AttentionParams params;
  DecodeSchedule schedule;
  int first_sequence;  // of the launch
  ScoreScale scale;
  // Of the rows that are merged, as DecodeSchedule numbers them. Splits that show a row no key have an LSE of -inf, and
  // their output is not written.
  float* outputs;  // (pairs, splits, columns, head_dim_v), normalised
  float* lses;     // (pairs, columns, splits)

  // Of the first launch.
  static DecodeArguments of(const AttentionParams& params, float* workspace) {
    const DecodeSchedule schedule = decode_schedule(params);
    float* lses = workspace + schedule.merged_rows() * schedule.splits * params.head_dim_v;
    const bool has_terms = params.alibi.slopes != nullptr;
    return {params, schedule, 0, ScoreScale::of(params.softmax_scale, params.softcap, has_terms), workspace, lses};
  }

  FLAGATTN_DEVICE float* output_of(int pair, int split, int column) const {
    const int64_t row = (int64_t{pair} * schedule.splits + split) * schedule.columns + column;
    return outputs + row * params.head_dim_v;
  }
  FLAGATTN_DEVICE float* lses_of(int pair, int column) const {
    return lses + (int64_t{pair} * schedule.columns + column) * schedule.splits;
  }
};

template <typename Element>
struct DecodePlan {
  CachedSequence sequence;
  int first_column;
  int end_column;  // first_column where there is nothing to do
  int split;
  int pair;      // of those of the launch
  bool at_once;  // the block has all keys of its columns
  PartPlan parts[2];
  CacheRows<const Element> rows[3];  // near keys, far keys, values
  ColumnRows<const Element> queries[2];
};

// What masks and ALiBi ask of a column.
struct ColumnPlace {
  int row;
  float slope;
};

template <typename Traits>
struct DecodeShared : Traits::SharedStorage {
  DecodePlan<typename Traits::Element> plan;
  ColumnPlace columns[Traits::kBlockM];
  WarpVotes<Traits::kThreads / ptx::kWarpSize> votes;
};

// Rows of the plan by their number, which alone takes a register.
template <typename Traits>
struct PlannedRows {
  int number;

  FLAGATTN_DEVICE const auto& get() const { return ptx::shared_storage<DecodeShared<Traits>>().plan.rows[number]; }
};
template <typename Traits>
struct PlannedQueries {
  int number;

  FLAGATTN_DEVICE const auto& get() const { return ptx::shared_storage<DecodeShared<Traits>>().plan.queries[number]; }
};

template <typename Traits>
FLAGATTN_DEVICE DecodePlan<typename Traits::Element> plan_decode(const DecodeArguments& arguments,
                                                                 const DecodeSchedule::Work& work) {
  using Element = typename Traits::Element;
  const AttentionParams& p = arguments.params;
  const int group = static_cast<int>(p.heads_q / p.heads_k);
  DecodePlan<Element> plan;
  plan.sequence = cached_sequence(p, arguments.first_sequence + work.sequence);
  const CachedSequence& sequence = plan.sequence;
  const int num_columns = sequence.seqlen_q * group;
  plan.first_column = work.column_tile * Traits::kBlockM;
  const int end = plan.first_column + Traits::kBlockM;
  plan.end_column = end < num_columns ? end : num_columns;
  plan.split = work.split;
  plan.pair = work.sequence * arguments.schedule.heads_k + work.head_k;
  plan.at_once = attends_at_once(num_columns, sequence.seqlen_k);
  const KeyRange split{int64_t{work.split} * kDecodeSplit, (int64_t{work.split} + 1) * kDecodeSplit};
  const KeyRange keys = plan.at_once ? KeyRange{0, sequence.seqlen_k} : split;
  const bool has_split = work.split == 0 || (!plan.at_once && split.begin < sequence.seqlen_k);
  if (plan.end_column <= plan.first_column || !has_split) {
    plan.end_column = plan.first_column;
    return plan;
  }

  const int first_row = plan.first_column / group, last_row = (plan.end_column - 1) / group;
  const MaskShape mask{sequence.seqlen_q, sequence.seqlen_k, p.mask};
  const KeyPart first = p.is_piecewise() ? KeyPart::kNear : KeyPart::kAll;
  plan.parts[0] = plan_part<Traits>({mask, first, p.dist_threshold}, first_row, last_row, keys);
  plan.parts[1] = plan_part<Traits>({mask, KeyPart::kFar, p.dist_threshold}, first_row, last_row, keys);
  plan.rows[0] = cache_rows<const Element>(p, p.k, sequence, work.head_k, p.head_dim);
  plan.rows[1] = cache_rows<const Element>(p, p.k2, sequence, work.head_k, p.head_dim);
  plan.rows[2] = cache_rows<const Element>(p, p.v, sequence, work.head_k, p.head_dim_v);
  plan.queries[0] = column_rows<const Element>(p.q, sequence, work.head_k, group, p.head_dim);
  plan.queries[1] = column_rows<const Element>(p.q2, sequence, work.head_k, group, p.head_dim);
  return plan;
}

// Of the block's column `index`; those that do not exist are like the first.
FLAGATTN_DEVICE ColumnPlace column_place(const AttentionParams& p, int sequence, int head_k, int first_column,
                                         int end_column, int index) {
  const int group = static_cast<int>(p.heads_q / p.heads_k);
  const int column = first_column + index < end_column ? first_column + index : first_column;
  const float* slopes = p.alibi.slopes;
  if (slopes != nullptr) slopes += sequence * p.alibi.batch_stride + head_k * group + column % group;
  return {column / group, slopes == nullptr ? 0.0f : ptx::load_global(slopes)};
}

}  // namespace flagattn::sm80
