// What scores are multiplied by on their way to weights; the same for every kernel.
#pragma once

#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

// With smaller ones no finite score could be so far below another that it weighs nothing, as hidden keys must. Scores
// up to 1e29 weigh the same with it as with none.
inline constexpr float kLeastExponentFactor = 4e-37f;

// A weight is exp(natural * (unit * s(query * q . k) + terms)), where s(x) is tanh(softcap * x), or x where softcap is
// 0. The unit is 1 where no terms are added.
struct ScoreFactors {
  float query;  // the sign of the scale: the other factors stay positive, so that the largest score weighs most
  float softcap;
  float unit;
  double natural;
  float exponent;  // natural, to base 2
};

inline ScoreFactors score_factors(const AttentionParams& params, bool additive_terms) {
  const float scale = params.softmax_scale;
  const float sign = scale > 0.0f ? 1.0f : scale < 0.0f ? -1.0f : 0.0f;
  const float magnitude = scale == 0.0f ? 1.0f : scale * sign;
  const double size = params.softcap > 0.0f ? params.softcap : magnitude;
  const double natural = additive_terms ? 1.0 : size;
  const float exponent = static_cast<float>(natural * 1.44269504088896340736);
  return {sign, params.softcap > 0.0f ? magnitude / params.softcap : 0.0f,
          additive_terms ? static_cast<float>(size) : 1.0f, natural,
          exponent < kLeastExponentFactor ? kLeastExponentFactor : exponent};
}

}  // namespace flagattn::FLAGATTN_ISA
