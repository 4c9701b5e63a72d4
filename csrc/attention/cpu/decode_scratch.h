// Where the decode kernel keeps things: one block for all workers, laid out once per call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "attention/cpu/decode_scores.h"
#include "attention/cpu/softmax.h"
#include "attention/decode_schedule.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kDecodeColumns = kPanel < kMostDecodeColumns ? kPanel : static_cast<int>(kMostDecodeColumns);
static_assert(kDecodeColumns % 4 == 0);

// The softmax so far of an item's heads: statistics by column, outputs[head][column][dim].
struct DecodeState {
  PanelStatistics* statistics;
  float* outputs;
};

struct DecodeSizes {
  int64_t heads;       // of an item
  int64_t blocks;      // of four columns
  int64_t output_row;  // floats from column to column: whole vectors
  int64_t outputs;     // floats of a head's outputs
  int64_t queries;     // floats of a head's queries
  int64_t scores;      // floats of a head's scores

  // Enough in either layout: fp32, or bf16 in whole tiles with what a tile reads behind them.
  static constexpr int64_t query_floats(int64_t dim, int64_t blocks) {
    const int64_t floats = dim * blocks * 4, in_tiles = (dim + 31) / 32 * 32 * blocks * 2 + 16;
    return ((floats > in_tiles ? floats : in_tiles) + 15) / 16 * 16;
  }

  DecodeSizes(const AttentionParams& params, const DecodeSchedule& schedule, int64_t columns)
      : heads(schedule.heads_per_item),
        blocks((columns + 3) / 4),
        output_row((params.head_dim_v + F32::kLanes - 1) / F32::kLanes * F32::kLanes),
        outputs(columns * output_row),
        queries(query_floats(params.head_dim, blocks)),
        scores(blocks * kBlockScores) {}
};

struct DecodeScratch {
  float *queries, *far_queries, *scores, *far_scores, *sums;
  DecodeState total, chunk;
  const void **key_rows, **far_rows, **value_rows, **next_rows;
};

// What workers share: the chunks' states, by sequence, chunk and head, and how many of a group's are missing.
struct DecodeShared {
  PanelStatistics* statistics;
  float* outputs;
  std::atomic<int64_t>* missing;
};

struct DecodeLayout {
  size_t statistics, outputs, missing;                                                 // shared
  size_t workers, worker_size;                                                         // then one part for each
  size_t queries, far_queries, scores, far_scores, sums, states, state_outputs, rows;  // within a worker's part
  size_t total;

  DecodeLayout(const AttentionParams& params, const DecodeSchedule& schedule, const DecodeSizes& sizes,
               int64_t num_workers) {
    size_t at = 0;
    const auto take = [&at](int64_t count, size_t size) {
      const size_t start = at;
      at += (static_cast<size_t>(count) * size + 63) / 64 * 64;
      return start;
    };
    const int64_t kept = schedule.split ? schedule.batch * schedule.chunks * schedule.heads_k : 0;
    statistics = take(kept, sizeof(PanelStatistics));
    outputs = take(kept * sizes.outputs, sizeof(float));
    missing = take(schedule.split ? schedule.batch * schedule.head_blocks() : 0, sizeof(std::atomic<int64_t>));
    workers = at;
    at = 0;
    const int64_t pairs = params.is_piecewise() ? 2 : 1;
    queries = take(sizes.heads * sizes.queries, sizeof(float));
    far_queries = take((pairs - 1) * sizes.heads * sizes.queries, sizeof(float));
    scores = take(sizes.heads * sizes.scores, sizeof(float));
    far_scores = take((pairs - 1) * sizes.heads * sizes.scores, sizeof(float));
    sums = take(sizes.heads * sizes.outputs, sizeof(float));
    states = take(2 * sizes.heads, sizeof(PanelStatistics));
    state_outputs = take(2 * sizes.heads * sizes.outputs, sizeof(float));
    rows = take(4 * kCpuKeyTile, sizeof(void*));
    worker_size = at;
    total = workers + static_cast<size_t>(num_workers) * worker_size;
  }

  DecodeShared shared(char* block) const {
    return {reinterpret_cast<PanelStatistics*>(block + statistics), reinterpret_cast<float*>(block + outputs),
            reinterpret_cast<std::atomic<int64_t>*>(block + missing)};
  }
  DecodeScratch worker(char* block, int64_t index, const DecodeSizes& sizes) const {
    char* base = block + workers + static_cast<size_t>(index) * worker_size;
    const auto floats = [base](size_t offset) { return reinterpret_cast<float*>(base + offset); };
    auto* statistics_of = reinterpret_cast<PanelStatistics*>(base + states);
    auto** tables = reinterpret_cast<const void**>(base + rows);
    return {floats(queries),
            floats(far_queries),
            floats(scores),
            floats(far_scores),
            floats(sums),
            {statistics_of, floats(state_outputs)},
            {statistics_of + sizes.heads, floats(state_outputs) + sizes.heads * sizes.outputs},
            tables,
            tables + kCpuKeyTile,
            tables + 2 * kCpuKeyTile,
            tables + 3 * kCpuKeyTile};
  }
};

}  // namespace flagattn::FLAGATTN_ISA
