// Scores on their way to weights, and the weights' gradients on their way to the scores'.
#pragma once

#include <cmath>

#include "arch/ptx/convert.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/math.cuh"
#include "attention/cuda/sm80/backward_traits.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace flagattn::sm80 {

// How a product q . k becomes the exponent of two of its weight: exponent_scale * transform(q . k) - lse log2(e), where
// the transform is tanh(input_scale q . k) with a soft cap and nothing without. Terms are in the exponent's own unit,
// as in ScoreScale: exponent_scale * (term_unit * transform(q . k) + term) - lse log2(e).
struct GradientScale {
  float exponent_scale;
  bool caps;
  float input_scale;
  float output_scale;  // of dQ and dK
  float term_unit;

  static GradientScale of(float softmax_scale, float softcap, bool has_terms) {
    const float unit = softcap > 0.0f ? softcap : softmax_scale, joined = has_terms ? 1.0f : unit;
    return {joined * kLog2E, softcap > 0.0f, softmax_scale / unit, softmax_scale, unit};
  }
};

// Where a thread's elements lie in the tiles of weights and of score gradients.
template <typename Traits>
struct ThreadScores {
  int row;  // in the tile: of the thread's first element
  int key;
  ptx::SharedAddress address;  // of it in a tile that begins where shared memory does

  FLAGATTN_DEVICE ThreadScores(ptx::SharedAddress base, const WarpParts<Traits>& warp)
      : row(warp.query_row + warp.lane / 4),
        key(warp.key + warp.lane % 4 * 2),
        address(base + chunk_offset<Traits::kBlockN>(row, key / 8) + key % 8 * 2) {}

  // Of the two elements that begin at [i][j][2 h] of the tile at `tile_offset`.
  FLAGATTN_DEVICE ptx::SharedAddress pair_at(uint32_t tile_offset, int i, int h, int j) const {
    return (address ^ static_cast<uint32_t>(j << 4)) + (tile_offset + (16 * i + 8 * h) * Traits::kBlockN * 2);
  }
};

// One of the two statistics of the thread's rows, of which `row` is the first.
template <typename Traits>
struct RowValues {
  float of[Traits::kRowTiles][2];

  FLAGATTN_DEVICE RowValues(ptx::SharedAddress values, int row) {
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < Traits::kRowTiles; ++i) {
      FLAGATTN_UNROLL_ALL
      for (int h = 0; h < 2; ++h) of[i][h] = ptx::load_shared<float>(values + (row + 16 * i + 8 * h) * 4);
    }
  }
};

// Applies body(i, j, h) to every pair of neighbours, the elements [i][j][2 h] and [i][j][2 h + 1].
template <typename Traits, typename Body>
FLAGATTN_DEVICE void for_each_pair(Body&& body) {
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < Traits::kRowTiles; ++i) {
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kWarpKeys / 8; ++j) {
      FLAGATTN_UNROLL_ALL
      for (int h = 0; h < 2; ++h) body(i, j, h);
    }
  }
}

// Scores times `input_scale` become their tanh. The slopes, 1 - tanh^2, wait as fp16 where the gradients of the same
// scores will be, which only the thread itself touches until then: no register is free to keep them.
template <typename Traits>
FLAGATTN_DEVICE void cap_scores(typename Traits::Scores& scores, float input_scale, const ThreadScores<Traits>& place) {
  for_each_pair<Traits>([&](int i, int j, int h) {
    float* pair = &scores[i][j][2 * h];
    FLAGATTN_UNROLL_ALL
    for (int e = 0; e < 2; ++e) pair[e] = tanh_approx(pair[e] * input_scale);
    ptx::store_shared(place.pair_at(Traits::kDscores, i, h, j),
                      ptx::pack<Float16>(std::fma(-pair[0], pair[0], 1.0f), std::fma(-pair[1], pair[1], 1.0f)));
  });
}

template <typename Traits>
FLAGATTN_DEVICE void multiply_by_slopes(typename Traits::Scores& dweights, const ThreadScores<Traits>& place) {
  for_each_pair<Traits>([&](int i, int j, int h) {
    const auto slopes = ptx::unpack<Float16>(ptx::load_shared<uint32_t>(place.pair_at(Traits::kDscores, i, h, j)));
    dweights[i][j][2 * h] *= slopes.low;
    dweights[i][j][2 * h + 1] *= slopes.high;
  });
}

// scores become exponents.
template <typename Traits>
FLAGATTN_DEVICE void find_exponents(typename Traits::Scores& scores, ptx::SharedAddress lse_values,
                                    float exponent_scale, const ThreadScores<Traits>& place) {
  const RowValues<Traits> lse(lse_values, place.row);
  for_each_pair<Traits>([&](int i, int j, int h) {
    FLAGATTN_UNROLL_ALL
    for (int e = 2 * h; e < 2 * h + 2; ++e) {
      const float score = scores[i][j][e];
      scores[i][j][e] = std::fma(score, exponent_scale, -lse.of[i][h]);
      if (Traits::kTerms && score == -INFINITY) scores[i][j][e] = -INFINITY;  // hidden, and lse may be NaN
    }
  });
}

// Exponents of keys that a row does not see become -inf. The tile begins at row `first_row` and key `first_key`.
template <typename Traits>
FLAGATTN_DEVICE void hide_keys(typename Traits::Scores& exponents, const VisibleBand& band,
                               const ThreadScores<Traits>& place, int first_row, int first_key) {
  const int thread_diagonal = first_key + place.key - first_row - place.row;
  const int first_diagonal = band.first_diagonal - thread_diagonal;
  const int end_diagonal = band.end_diagonal + (planted(Fault::kWrongMaskEdge) ? 1 : 0) - thread_diagonal;
  const int keys = band.keys - first_key - place.key;
  for_each_pair<Traits>([&](int i, int j, int h) {
    FLAGATTN_UNROLL_ALL
    for (int e = 0; e < 2; ++e) {
      const int row = 16 * i + 8 * h, key = 8 * j + e;
      const bool hidden = key - row < first_diagonal || key - row >= end_diagonal || key >= keys;
      if (hidden) exponents[i][j][2 * h + e] = -INFINITY;
    }
  });
}

// Exponents become weights, and go to shared memory rounded.
template <typename Traits>
FLAGATTN_DEVICE void store_weights(typename Traits::Scores& exponents, const ThreadScores<Traits>& place) {
  for_each_pair<Traits>([&](int i, int j, int h) {
    float* pair = &exponents[i][j][2 * h];
    pair[0] = ptx::exp2_approx(pair[0]);
    pair[1] = ptx::exp2_approx(pair[1]);
    ptx::store_shared(place.pair_at(Traits::kWeights, i, h, j), ptx::pack<typename Traits::Element>(pair[0], pair[1]));
  });
}

// The gradients of the weights start at -delta: what their products add up to is then dP - delta. With `factor` 0 they
// start at zero.
template <typename Traits>
FLAGATTN_DEVICE void start_from_deltas(typename Traits::Scores& dweights, ptx::SharedAddress deltas,
                                       const ThreadScores<Traits>& place, float factor = -1.0f) {
  const RowValues<Traits> delta(deltas, place.row);
  for_each_pair<Traits>([&](int i, int j, int h) {
    dweights[i][j][2 * h] = factor * delta.of[i][h];
    dweights[i][j][2 * h + 1] = factor * delta.of[i][h];
  });
}

// Of weights that are zero: what hidden rows and keys hold may have made them NaN.
template <typename Traits>
FLAGATTN_DEVICE void forget_hidden(const typename Traits::Scores& weights, typename Traits::Scores& dweights) {
  for_each_pair<Traits>([&](int i, int j, int h) {
    FLAGATTN_UNROLL_ALL
    for (int e = 2 * h; e < 2 * h + 2; ++e) {
      if (weights[i][j][e] == 0.0f) dweights[i][j][e] = 0.0f;
    }
  });
}

// The gradients of the scores, rounded to shared memory. Where terms hide keys the weight is zero, whatever the
// gradient.
template <typename Traits>
FLAGATTN_DEVICE void store_dscores(const typename Traits::Scores& weights, const typename Traits::Scores& dweights,
                                   const ThreadScores<Traits>& place) {
  for_each_pair<Traits>([&](int i, int j, int h) {
    const float *weight = &weights[i][j][2 * h], *dweight = &dweights[i][j][2 * h];
    const auto product = [&](int e) { return Traits::kTerms && weight[e] == 0.0f ? 0.0f : weight[e] * dweight[e]; };
    ptx::store_shared(place.pair_at(Traits::kDscores, i, h, j),
                      ptx::pack<typename Traits::Element>(product(0), product(1)));
  });
}

}  // namespace flagattn::sm80
