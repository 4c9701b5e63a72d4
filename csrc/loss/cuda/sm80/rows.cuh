// What cross-entropy knows of a row, how it reads one, and what it does to a logit.
#pragma once

#include <cmath>

#include "arch/cuda/row_team.cuh"
#include "loss/cuda/sm80/launch.h"

namespace flagattn::sm80 {

FLAGATTN_DEVICE float exponential(float x) { return ptx::exp2_approx(x * 1.4426950408889634f); }

// z = softcap tanh(x / softcap), or x.
FLAGATTN_DEVICE float capped(float x, float softcap) { return softcap == 0.0f ? x : softcap * tanhf(x / softcap); }

// A row's target and weight. A target outside the classes is moved to the nearest, since a kernel cannot raise.
struct LossRow {
  int target = 0;
  float weight = 1.0f;
  bool is_kept = false;

  FLAGATTN_DEVICE LossRow(const LossRows& in, int64_t row) {
    if (row >= in.rows) return;
    const int64_t given = ptx::load_global(in.targets + row);
    if (in.weights != nullptr) weight = ptx::load_global(in.weights + row);
    is_kept = given != in.options.ignore_index && weight != 0.0f && in.classes > 0;
    target = static_cast<int>(given < 0 ? 0 : given < in.classes ? given : in.classes - 1);
  }
};

// A row in vectors of 16 bytes between borders of 16 bytes, wherever it starts: the first and the last may be cut.
template <typename T>
struct RowVectors {
  static constexpr int kVector = cuda::kVector<T>;
  T* row;
  int skew;  // elements from the border to the row's start
  int classes;

  FLAGATTN_DEVICE RowVectors(T* row, int classes)
      : row(row), skew(static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T))), classes(classes) {}

  // The column of vector `index`; that of the first may be negative.
  FLAGATTN_DEVICE int column(int index) const { return index * kVector - skew; }
  FLAGATTN_DEVICE bool is_whole(int column) const {
    return column >= 0 && column + kVector <= classes + (planted(Fault::kStrayRead) ? kVector : 0);
  }
};

// The sum of e^(z - maximum) over what a thread has seen, and of z. Terms of 1 are counted apart: a sum near 1 cannot
// hold the small ones, of which the loss of a confident row is made.
struct RunningSum {
  float maximum = -INFINITY;
  float ones = 0.0f;
  float rest = 0.0f;
  float total = 0.0f;

  // Adds kCount numbers; `totals`: their sum is asked for too. -inf adds nothing, NaN shows in the sum.
  template <int kCount>
  FLAGATTN_DEVICE void add(const float (&z)[kCount], bool totals) {
    float highest = maximum;
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kCount; ++i) highest = fmaxf(highest, z[i]);
    const float shift = highest == -INFINITY ? 0.0f : highest;  // -inf - -inf would be NaN
    if (highest > maximum) {
      rest = (rest + ones) * exponential(maximum - shift);
      ones = 0.0f;
    }
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kCount; ++i) {
      const float term = exponential(z[i] - shift);
      ones += term == 1.0f ? 1.0f : 0.0f;
      rest += term == 1.0f ? 0.0f : term;
    }
    maximum = highest;
    if (!totals) return;
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kCount; ++i) total += z[i];
  }
};

}  // namespace flagattn::sm80
