// The online softmax of a tile of decode scores. Vectors hold four columns of kFourKeys keys; statistics lie by column.
#pragma once

#include <cstdint>
#include <limits>

#include "arch/simd.h"
#include "attention/cpu/decode_scores.h"
#include "attention/cpu/softmax.h"

namespace flagattn::FLAGATTN_ISA {

// The largest scores of the columns, over whole pairs of keys [begin, end).
inline void largest_scores(const float* block_scores, int blocks, int64_t begin, int64_t end, F32 (&largest)[kNV]) {
  alignas(64) float most[kPanel], lanes[F32::kLanes];
  for (float& value : most) value = -std::numeric_limits<float>::infinity();
  const int64_t whole = begin / kFourKeys * kFourKeys;
  for (int b = 0; b < blocks; ++b) {
    const float* scores = block_scores + b * kBlockScores;
    F32 running = F32::set1(-std::numeric_limits<float>::infinity());
    for (int64_t key = whole; key < end; key += kFourKeys) running = max(running, F32::load(scores + key * 4));
    running.store(lanes);
    for (int lane = 0; lane < F32::kLanes; ++lane) {
      float& value = most[4 * b + lane % 4];
      if (!(lanes[lane] <= value)) value = lanes[lane];
    }
  }
  for (int v = 0; v < kNV; ++v) largest[v] = F32::load(most + first_column(v));
}

// Scores become weights; partial[parity] adds them up in the order of the keys.
inline void weigh(const PanelStatistics& statistics, int blocks, int64_t begin, int64_t end, float factor,
                  float* block_scores, F32 (&partial)[2][kNV]) {
  alignas(64) float sums[2][kPanel] = {}, lanes[F32::kLanes];
  const F32 minus_factor = F32::set1(-factor), farthest = farthest_below(factor);
  for (int b = 0; b < blocks; ++b) {
    float* scores = block_scores + b * kBlockScores;
    for (int lane = 0; lane < F32::kLanes; ++lane) lanes[lane] = statistics.maximum[4 * b + lane % 4];
    const F32 maximum = F32::load(lanes);
    for (int64_t key = begin / kFourKeys * kFourKeys; key < end; key += kFourKeys) {
      float* at = scores + key * 4;
      F32 weight[] = {maximum - F32::load(at)};
      weights_of_all(weight, minus_factor, farthest);
      weight[0].store(at);
    }
    float pair[8] = {};
    for (int64_t key = begin; key < end; key += 2) {
      for (int i = 0; i < 8; ++i) pair[i] += scores[key * 4 + i];
    }
    for (int i = 0; i < 4; ++i) {
      sums[0][4 * b + i] = pair[i];
      sums[1][4 * b + i] = pair[4 + i];
    }
  }
  for (int parity = 0; parity < 2; ++parity) {
    for (int v = 0; v < kNV; ++v) partial[parity][v] = F32::load(sums[parity] + first_column(v));
  }
}

}  // namespace flagattn::FLAGATTN_ISA
