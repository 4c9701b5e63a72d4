// Scores on their way to weights: transform, mask (edge tiles only), online softmax.
#pragma once

#include <cmath>

#include "arch/planted_fault.h"
#include "arch/ptx/math.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/traits.cuh"
#include "attention/mask.h"

namespace flagattn::sm80 {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// How a product q . k becomes an exponent of two: exponent = exponent_scale * transform(q . k). A positive scale
// without soft cap needs no transform: it is folded into the exponent's one multiply-add. Terms are in the exponent's
// own unit, so that what they join is transformed to it: exponent = log2(e) * (term_unit * transform(q . k) + term).
struct ScoreScale {
  float exponent_scale;
  bool transforms;
  float input_scale;
  bool caps;
  float term_unit;

  static ScoreScale of(float softmax_scale, float softcap, bool has_terms = false) {
    const bool caps = softcap > 0.0f;
    if (has_terms) return {kLog2E, caps, caps ? softmax_scale / softcap : 1.0f, caps, caps ? softcap : softmax_scale};
    if (caps) return {softcap * kLog2E, true, softmax_scale / softcap, true, 1.0f};
    if (softmax_scale > 0.0f) return {softmax_scale * kLog2E, false, 1.0f, false, 1.0f};
    return {kLog2E, true, softmax_scale, false, 1.0f};  // the running maximum is of transformed scores
  }
};

// Applies body(score, row, key) to every element; row and key count from the thread's first.
template <typename Traits, typename Body>
FLAGATTN_DEVICE void for_each_score(typename Traits::Scores& scores, Body&& body) {
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < Traits::kRowTiles; ++i) {
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kBlockN / 8; ++j) {
      FLAGATTN_UNROLL_ALL
      for (int e = 0; e < 4; ++e) body(scores[i][j][e], 16 * i + 8 * (e / 2), 8 * j + e % 2);
    }
  }
}

// 1 - 2 / (e^2x + 1), within 2e-7; by its Taylor polynomial near 0, where that difference would cancel (arch/simd.h).
FLAGATTN_DEVICE float tanh_approx(float x) {
  const float far = 1.0f - 2.0f * ptx::reciprocal_approx(ptx::exp2_approx(x * (2.0f * kLog2E)) + 1.0f);
  const float x2 = x * x;
  float p = std::fma(62.0f / 2835.0f, x2, -17.0f / 315.0f);
  p = std::fma(p, x2, 2.0f / 15.0f);
  p = std::fma(p, x2, -1.0f / 3.0f);
  return std::fabs(x) < 0.3f ? std::fma(x * x2, p, x) : far;
}

// The softmax's argument where it is not simply a multiple of q . k.
template <typename Traits>
FLAGATTN_DEVICE void transform_scores(typename Traits::Scores& scores, const ScoreScale& scale) {
  if (scale.caps) {
    for_each_score<Traits>(scores, [&](float& score, int, int) { score = tanh_approx(score * scale.input_scale); });
  } else {
    for_each_score<Traits>(scores, [&](float& score, int, int) { score *= scale.input_scale; });
  }
}

// Which elements of a tile are scores of visible keys, as 32-bit numbers: PartShape::diagonals() and the number of
// keys.
struct ElementMask {
  int first_diagonal;
  int end_diagonal;
  int keys;

  FLAGATTN_DEVICE static ElementMask of(const PartShape& part) {
    const KeyRange diagonals = part.diagonals();
    return {static_cast<int>(diagonals.begin),
            static_cast<int>(diagonals.end) + (planted(Fault::kWrongMaskEdge) ? 1 : 0),
            static_cast<int>(part.shape.seqlen_k)};
  }
};

// Sets the scores of keys that a row does not see to -inf. `first_row` is the warp's first row, `first_key` the tile's.
template <typename Traits>
FLAGATTN_DEVICE void mask_scores(typename Traits::Scores& scores, const ElementMask& mask, int first_row, int first_key,
                                 int lane) {
  // The thread's place comes off the bounds once, so that each element compares constants.
  const int thread_row = first_row + lane / 4, thread_key = first_key + 2 * (lane % 4);
  const int first_diagonal = mask.first_diagonal - thread_key + thread_row;
  const int end_diagonal = mask.end_diagonal - thread_key + thread_row;
  const int keys = mask.keys - thread_key;
  for_each_score<Traits>(scores, [&](float& score, int row, int key) {
    if (key - row < first_diagonal || key - row >= end_diagonal || key >= keys) score = -INFINITY;
  });
}

// The running maximum and sum of this thread's rows. Sums are the thread's own until `finish`.
template <typename Traits>
struct OnlineSoftmax {
  static constexpr int kRows = Traits::kRowsPerThread;
  float maximum[kRows];  // of the (transformed) scores
  float sum[kRows];      // of 2^(exponent_scale (score - maximum))

  FLAGATTN_DEVICE OnlineSoftmax() {
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < kRows; ++r) {
      maximum[r] = -INFINITY;
      sum[r] = 0.0f;
    }
  }

  // Turns scores into weights relative to the new maximum, and brings `output` and the sums to it.
  FLAGATTN_DEVICE void update(typename Traits::Scores& scores, typename Traits::Output& output, float exponent_scale) {
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < kRows; ++r) {
      const int i = r / 2, h = r % 2 * 2;
      float highest = maximum[r];
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < Traits::kBlockN / 8; ++j) {
        highest = std::fmax(highest, std::fmax(scores[i][j][h], scores[i][j][h + 1]));
      }
      highest = std::fmax(highest, ptx::shuffle_xor(highest, 1));
      highest = std::fmax(highest, ptx::shuffle_xor(highest, 2));
      // A row that has seen no key yet must not compute -inf - -inf.
      const float offset = highest == -INFINITY ? 0.0f : highest * exponent_scale;
      const float correction = ptx::exp2_approx(maximum[r] * exponent_scale - offset);
      maximum[r] = highest;

      float added = 0.0f;
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < Traits::kBlockN / 8; ++j) {
        FLAGATTN_UNROLL_ALL
        for (int e = h; e < h + 2; ++e) {
          scores[i][j][e] = ptx::exp2_approx(std::fma(scores[i][j][e], exponent_scale, -offset));
          added += scores[i][j][e];
        }
      }
      sum[r] = std::fma(sum[r], correction, added);
      if (!planted(Fault::kMissingRescale)) {
        FLAGATTN_UNROLL_ALL
        for (int j = 0; j < Traits::kHeadDim / 8; ++j) {
          output[i][j][h] *= correction;
          output[i][j][h + 1] *= correction;
        }
      }
    }
  }

  // Completes the sums over the four lanes that share a row.
  FLAGATTN_DEVICE void finish() {
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < kRows; ++r) {
      if (planted(Fault::kDivergentCollective) && ptx::thread_index() == 0) continue;
      sum[r] += ptx::shuffle_xor(sum[r], 1);
      sum[r] += ptx::shuffle_xor(sum[r], 2);
    }
  }

  // log of the sum of exp(score) over the row's keys; -inf if there is none.
  FLAGATTN_DEVICE float log_sum_exp(int r, float exponent_scale) const {
    return sum[r] == 0.0f ? -INFINITY : (maximum[r] * exponent_scale + ptx::log2_approx(sum[r])) * kLn2;
  }
};

// What a row's output is multiplied by, and its LSE.
template <typename Traits>
struct RowResults {
  float factor[Traits::kRowsPerThread];
  float lse[Traits::kRowsPerThread];

  // `sink` may be null. `weight_scale` makes up for dropped weights.
  FLAGATTN_DEVICE RowResults(const OnlineSoftmax<Traits>& softmax, float exponent_scale, const float* sink,
                             float weight_scale) {
    const float sink_lse = sink == nullptr ? -INFINITY : ptx::load_global(sink);
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < Traits::kRowsPerThread; ++r) {
      factor[r] = softmax.sum[r] == 0.0f ? 0.0f : weight_scale * ptx::reciprocal_approx(softmax.sum[r]);
      lse[r] = softmax.log_sum_exp(r, exponent_scale);
      join_sink(r, sink_lse);
    }
  }

  // A key of this score and of value 0 joins row r of the thread; -inf: none.
  FLAGATTN_DEVICE void join_sink(int r, float sink) {
    if (sink == -INFINITY) return;
    const float highest = std::fmax(lse[r], sink);
    const float own = ptx::exp2_approx((lse[r] - highest) * kLog2E);
    const float both = own + ptx::exp2_approx((sink - highest) * kLog2E);
    factor[r] *= own * ptx::reciprocal_approx(both);
    lse[r] = highest + ptx::log2_approx(both) * kLn2;
  }
};

}  // namespace flagattn::sm80
