// What score terms and dropout change on the way from scores to the gradients of scores. Nothing here keeps registers
// over a product: dropped weights are known by their sign.
#pragma once

#include "attention/cuda/sm80/backward_scores.cuh"
#include "attention/cuda/sm80/dropout.cuh"
#include "attention/cuda/sm80/score_terms.cuh"

namespace flagattn::sm80 {

// scores += what joins them, in units of the exponent. `first_row` and `first_key` are the tile's.
template <typename Traits>
FLAGATTN_DEVICE void join_terms(typename Traits::Scores& scores, const AttentionParams& params, float unit,
                                int sequence, int head, const WarpParts<Traits>& warp, const VisibleBand& band,
                                int first_row, int first_key) {
  const ScoreTerms<WarpScores<Traits>> terms(params, sequence, head, unit);
  terms.join(scores, {first_row + warp.query_row, first_key + warp.key, band.rows, band.keys}, warp.lane);
}

// Exponents become weights, and those that dropout drops become negative.
template <typename Traits>
FLAGATTN_DEVICE void find_weights(typename Traits::Scores& exponents, const AttentionParams& params, int sequence,
                                  int head, const WarpParts<Traits>& warp, int first_row, int first_key) {
  for_each_pair<Traits>([&](int i, int j, int h) {
    float* pair = &exponents[i][j][2 * h];
    pair[0] = ptx::exp2_approx(pair[0]);
    pair[1] = ptx::exp2_approx(pair[1]);
  });
  if (params.dropout.rng_state == nullptr) return;
  const Dropout<WarpScores<Traits>> dropout(params, sequence, head);
  dropout.for_each_dropped(first_row + warp.query_row, first_key + warp.key, warp.lane,
                           [&](int i, int j, int e) { exponents[i][j][e] = -exponents[i][j][e]; });
}

// Weights go to shared memory rounded, dropped ones as zeros; the scale of the others waits for the end of dV.
template <typename Traits>
FLAGATTN_DEVICE void store_kept_weights(const typename Traits::Scores& weights, const ThreadScores<Traits>& place) {
  const auto kept = [](float weight) { return weight < 0.0f ? 0.0f : weight; };
  for_each_pair<Traits>([&](int i, int j, int h) {
    const float* pair = &weights[i][j][2 * h];
    ptx::store_shared(place.pair_at(Traits::kWeights, i, h, j),
                      ptx::pack<typename Traits::Element>(kept(pair[0]), kept(pair[1])));
  });
}

// The gradient of a dropped weight is zero, and that of the others grows by `scale`; then deltas are taken off. Weights
// become positive again.
template <typename Traits>
FLAGATTN_DEVICE void drop_gradients(typename Traits::Scores& weights, typename Traits::Scores& dweights, float scale,
                                    ptx::SharedAddress deltas, const ThreadScores<Traits>& place) {
  const RowValues<Traits> delta(deltas, place.row);
  for_each_pair<Traits>([&](int i, int j, int h) {
    FLAGATTN_UNROLL_ALL
    for (int e = 2 * h; e < 2 * h + 2; ++e) {
      const float dweight = weights[i][j][e] < 0.0f ? 0.0f : dweights[i][j][e] * scale;
      dweights[i][j][e] = dweight - delta.of[i][h];
      weights[i][j][e] = std::fabs(weights[i][j][e]);
    }
  });
}

}  // namespace flagattn::sm80
