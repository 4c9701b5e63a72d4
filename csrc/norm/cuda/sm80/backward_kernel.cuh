// RMSNorm backward: a team of threads takes some rows, reads each once for both gradients, and sums the weight's over
// its rows in registers. The teams' sums are added by weight_gradient_kernel.cuh.
#pragma once

#include "arch/cuda/row_team.cuh"
#include "norm/cuda/sm80/forward_kernel.cuh"
#include "norm/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

template <typename T>
struct NormGradientRow {
  const T* dy;
  const T* s;
  const T* dsummed;
  T* ds;
  int width;

  // What of a vector both passes over the row need.
  struct Operands {
    ptx::Bytes16 dy, s, dsummed;
  };

  FLAGATTN_DEVICE NormGradientRow(const RmsNormBackwardParams& p, int64_t row, bool exists)
      : dy(row_of<const T>(p.dy, exists ? row : 0)),
        s(row_of<const T>(p.s, exists ? row : 0)),
        dsummed(p.dsummed.data == nullptr ? nullptr : row_of<const T>(p.dsummed, exists ? row : 0)),
        ds(static_cast<T*>(p.ds) + row * p.cols),
        width(exists ? static_cast<int>(p.cols) : 0) {}

  FLAGATTN_DEVICE Operands load(int column) const {
    Operands operands = {cuda::load_vector(dy, column, width), cuda::load_vector(s, column, width), {}};
    if (dsummed != nullptr) operands.dsummed = cuda::load_vector(dsummed, column, width);
    return operands;
  }

  // The vector's part of the sum of g n.
  FLAGATTN_DEVICE static float product(const Operands& operands, float rstd, const float (&gain)[cuda::kVector<T>]) {
    float upstream[cuda::kVector<T>], value[cuda::kVector<T>], sum = 0.0f;
    cuda::widen<T>(operands.dy, upstream);
    cuda::widen<T>(operands.s, value);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) sum = fmaf(upstream[i] * gain[i], value[i] * rstd, sum);
    return sum;
  }

  // Writes ds and adds the row's dweight; `mean` is that of g n.
  FLAGATTN_DEVICE void write(int column, const Operands& operands, float rstd, float mean,
                             const float (&gain)[cuda::kVector<T>], float (&dweight)[cuda::kVector<T>]) const {
    float upstream[cuda::kVector<T>], value[cuda::kVector<T>], gradient[cuda::kVector<T>];
    cuda::widen<T>(operands.dy, upstream);
    cuda::widen<T>(operands.s, value);
    cuda::widen<T>(operands.dsummed, gradient);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) {
      const float normalised = value[i] * rstd;
      dweight[i] += upstream[i] * normalised;
      gradient[i] += rstd * fmaf(-normalised, mean, upstream[i] * gain[i]);  // g rounded as in product()
    }
    cuda::store_vector(ds, column, width, cuda::narrow<T>(gradient));
  }
};

// Columns [column, column + kVector<T>) of a team's row of partial sums, whose end is padded to whole vectors.
template <typename T>
FLAGATTN_DEVICE void load_partial(const float* partial, int column, float (&values)[cuda::kVector<T>]) {
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < cuda::kVector<T>; i += 4) {
    const ptx::Bytes16 four = ptx::load_global_16_once(partial + column + i);
    std::memcpy(&values[i], four.words, sizeof four.words);
  }
}
template <typename T>
FLAGATTN_DEVICE void store_partial(float* partial, int column, const float (&values)[cuda::kVector<T>]) {
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < cuda::kVector<T>; i += 4) {
    ptx::Bytes16 four;
    std::memcpy(four.words, &values[i], sizeof four.words);
    ptx::store_global_16(partial + column + i, four);
  }
}

template <typename T>
FLAGATTN_KERNEL(cuda::kMostRowThreads, 1)
rms_norm_backward_kernel(FLAGATTN_KERNEL_ARGUMENT NormBackwardArguments arguments) {
  constexpr int kHeld = kBackwardColumns / cuda::kVector<T>;
  const RmsNormBackwardParams& p = arguments.params;
  auto& shared = ptx::shared_storage<NormShared>();
  const cuda::RowTeam team(arguments.plan);
  const int rows_per_team = arguments.plan.rows_per_team, cols = static_cast<int>(p.cols);

  // The team's row of partial sums; none where there are no rows left, or dweight is not asked for.
  const int64_t first_row = team.index * rows_per_team;
  float* partial = nullptr;
  if (p.dweight != nullptr && first_row < p.rows) {
    partial = static_cast<float*>(p.scratch) + team.index * norm_partial_stride(p.cols);
  }

  float gain[kHeld][cuda::kVector<T>], dweight[kHeld][cuda::kVector<T>] = {};
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kHeld; ++n) load_gain(p, team.column<T>(n), gain[n]);

  for (int i = 0; i < rows_per_team; ++i) {
    const int64_t number = first_row + i + (planted(Fault::kWrongRow) ? 1 : 0);
    const bool exists = number < p.rows;
    const NormGradientRow<T> row(p, number, exists);
    const float rstd = exists ? ptx::load_global(p.rstd + number) : 0.0f;

    // The row into registers, and its sum of g n.
    typename NormGradientRow<T>::Operands held[kHeld];
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kHeld; ++n) held[n] = row.load(team.column<T>(n));
    float product = 0.0f;
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kHeld; ++n) product += row.product(held[n], rstd, gain[n]);
    for (int column = team.column<T>(kHeld); column < row.width; column += team.columns_per_step<T>()) {
      float own_gain[cuda::kVector<T>];
      load_gain(p, column, own_gain);
      product += row.product(row.load(column), rstd, own_gain);
    }
    const float mean = team.sum(product, shared.exchange[i % 2]) / static_cast<float>(cols);

    // Its gradients. Where the row is too wide for registers, dweight is summed in the partial row itself.
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kHeld; ++n) {
      ptx::keep_packed(held[n].dy);
      ptx::keep_packed(held[n].s);
      row.write(team.column<T>(n), held[n], rstd, mean, gain[n], dweight[n]);
    }
    for (int column = team.column<T>(kHeld); column < row.width; column += team.columns_per_step<T>()) {
      float own_gain[cuda::kVector<T>], own_dweight[cuda::kVector<T>] = {};
      load_gain(p, column, own_gain);
      if (partial != nullptr && i > 0) load_partial<T>(partial, column, own_dweight);
      row.write(column, row.load(column), rstd, mean, own_gain, own_dweight);
      if (partial != nullptr) store_partial<T>(partial, column, own_dweight);
    }
  }

  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kHeld; ++n) {
    const int column = team.column<T>(n);
    if (partial != nullptr && column < cols) store_partial<T>(partial, column, dweight[n]);
  }
}

}  // namespace flagattn::sm80
