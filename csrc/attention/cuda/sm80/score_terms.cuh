// What joins the scores besides q . k: biases, ALiBi, masks of single elements. Threads read the elements of their own
// scores from global memory, where the four lanes of a row find neighbouring keys.
#pragma once

#include <cmath>

#include "arch/ptx/copy.cuh"
#include "arch/ptx/math.cuh"
#include "attention/cuda/sm80/softmax.cuh"
#include "attention/params.h"

namespace flagattn::sm80 {

// Biases below this hide their key as -inf does: the lowest float32 and bfloat16 stand for it in many masks.
inline constexpr float kLeastBias = -1e38f;

// Whether single keys may be hidden from single rows.
FLAGATTN_DEVICE bool hides_keys(const AttentionParams& params) {
  return params.bias.data != nullptr || params.keep.data != nullptr;
}

// Where a warp's scores lie among those of their head.
struct ScorePlace {
  int first_row;  // of the warp
  int first_key;  // of the tile
  int end_row;    // of the sequence
  int end_key;
};

// Elements of two neighbouring keys, as one access where the operand allows. Keys from `end` on are not read.
template <typename T>
FLAGATTN_DEVICE void load_pair(T (&pair)[2], const T* row, int64_t key_stride, int key, int end, bool in_pairs) {
  using Together = std::conditional_t<sizeof(T) == 1, uint16_t, std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>>;
  if (in_pairs && key + 1 < end) {
    const Together both = ptx::load_global(reinterpret_cast<const Together*>(row + key));
    std::memcpy(pair, &both, sizeof both);
    return;
  }
  FLAGATTN_UNROLL_ALL
  for (int e = 0; e < 2; ++e) {
    if (key + e < end) pair[e] = ptx::load_global(row + (key + e) * key_stride);
  }
}

// Applies body(score, element) to every score of the warp whose row and key exist. Rows that share their elements read
// them once.
template <typename Traits, typename T, typename Body>
FLAGATTN_DEVICE void for_each_element(typename Traits::Scores& scores, const ScoresView& view, const T* head,
                                      const ScorePlace& place, int lane, Body&& body) {
  const int row = place.first_row + lane / 4, key = place.first_key + 2 * (lane % 4);
  const T* first = head + row * view.row_stride;
  const bool in_pairs =
      view.key_stride == 1 && (reinterpret_cast<uintptr_t>(head) | view.row_stride * sizeof(T)) % (2 * sizeof(T)) == 0;
  FLAGATTN_UNROLL_ALL
  for (int j = 0; j < Traits::kBlockN / 8; ++j) {
    T pair[2] = {};
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < Traits::kRowsPerThread; ++r) {
      if (row + 8 * r < place.end_row && (r == 0 || view.row_stride != 0)) {
        load_pair(pair, first + 8 * r * view.row_stride, view.key_stride, key + 8 * j, place.end_key, in_pairs);
      }
      FLAGATTN_UNROLL_ALL
      for (int e = 0; e < 2; ++e) body(scores[r / 2][j][r % 2 * 2 + e], pair[e]);
    }
  }
}

// scores = unit * scores + terms, in units of the exponent; -inf where a key is hidden, whatever its score is.
template <typename Traits>
class ScoreTerms {
 public:
  FLAGATTN_DEVICE ScoreTerms(const AttentionParams& params, int sequence, int head, float unit)
      : params_(params),
        unit_(unit),
        slope_(params.alibi.slopes == nullptr
                   ? 0.0f
                   : ptx::load_global(params.alibi.slopes + sequence * params.alibi.batch_stride + head)),
        bias_(offset_of(params.bias, sequence, head)),
        keep_(offset_of(params.keep, sequence, head)) {}

  FLAGATTN_DEVICE void join(typename Traits::Scores& scores, const ScorePlace& place, int lane) const {
    for_each_score<Traits>(scores, [&](float& score, int, int) { score *= unit_; });
    if (params_.alibi.slopes != nullptr) add_alibi(scores, place, lane);
    if (params_.bias.data != nullptr) {
      switch (params_.bias_dtype) {
        case DType::kBFloat16:
          add_bias<BFloat16>(scores, place, lane);
          break;
        case DType::kFloat16:
          add_bias<Float16>(scores, place, lane);
          break;
        default:
          add_bias<float>(scores, place, lane);
      }
    }
    if (params_.keep.data != nullptr) {
      const auto* head = static_cast<const uint8_t*>(params_.keep.data) + keep_;
      for_each_element<Traits>(scores, params_.keep, head, place, lane, [](float& score, uint8_t keep) {
        if (keep == 0) score = -INFINITY;
      });
    }
  }

 private:
  FLAGATTN_DEVICE static int64_t offset_of(const ScoresView& view, int sequence, int head) {
    return sequence * view.batch_stride + head * view.head_stride;
  }

  template <typename T>
  FLAGATTN_DEVICE void add_bias(typename Traits::Scores& scores, const ScorePlace& place, int lane) const {
    const T* head = static_cast<const T*>(params_.bias.data) + bias_;
    for_each_element<Traits>(scores, params_.bias, head, place, lane, [](float& score, T element) {
      const float bias = ptx::widen(element);
      score = bias < kLeastBias ? -INFINITY : score + bias;
    });
  }

  FLAGATTN_DEVICE void add_alibi(typename Traits::Scores& scores, const ScorePlace& place, int lane) const {
    const int aligned = place.first_row + lane / 4 + place.end_key - place.end_row;
    const int distance = aligned - place.first_key - 2 * (lane % 4);  // of the thread's first score
    for_each_score<Traits>(scores, [&](float& score, int row, int key) {
      score = std::fma(-slope_, std::fabs(static_cast<float>(distance + row - key)), score);
    });
  }

  const AttentionParams& params_;
  float unit_;
  float slope_;
  int64_t bias_;  // of the head's first element
  int64_t keep_;
};

}  // namespace flagattn::sm80
