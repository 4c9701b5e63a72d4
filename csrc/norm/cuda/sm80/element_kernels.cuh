// RMSNorm of rows that vectors do not fit: neighbouring threads take neighbouring elements, and a row's second reading
// finds it in the caches. One kernel per direction serves every dtype.
#pragma once

#include "norm/cuda/sm80/backward_kernel.cuh"
#include "norm/cuda/sm80/forward_kernel.cuh"

namespace flagattn::sm80 {

template <typename Params>
FLAGATTN_DEVICE float gain_of(const Params& p, int column) {
  return cuda::load_number(p.weight, p.weight_dtype, column) + p.offset;
}

FLAGATTN_KERNEL(cuda::kMostRowThreads, 1)
rms_norm_element_kernel(FLAGATTN_KERNEL_ARGUMENT NormForwardArguments arguments) {
  const RmsNormParams& p = arguments.params;
  auto& shared = ptx::shared_storage<NormShared>();
  const cuda::RowTeam team(arguments.plan);
  const int cols = static_cast<int>(p.cols);
  for (int i = 0; i < arguments.plan.rows_per_team; ++i) {
    const int64_t row = team.index * arguments.plan.rows_per_team + i;
    const bool exists = row < p.rows;
    const int width = exists ? cols : 0;
    const int64_t first_x = offset_of_row(p.x, exists ? row : 0);
    const bool adds = p.residual.data != nullptr;
    const int64_t first_residual = adds ? offset_of_row(p.residual, exists ? row : 0) : 0;
    const auto load = [&](int column) {
      const float x = cuda::load_number(p.x.data, p.dtype, first_x + column);
      if (!adds) return x;
      return cuda::rounded_to(p.dtype, x + cuda::load_number(p.residual.data, p.dtype, first_residual + column));
    };

    float squares = 0.0f;
    for (int column = team.lane; column < width; column += team.lanes) {
      const float s = load(column);
      squares += s * s;
    }
    const float mean = team.sum(squares, shared.exchange[i % 2]) / static_cast<float>(cols);
    const float rstd = 1.0f / sqrtf(mean + p.eps);

    if (exists && team.lane == 0) ptx::store_global(p.rstd + row, rstd);
    for (int column = team.lane; column < width; column += team.lanes) {
      const float s = load(column);
      if (adds) cuda::store_number(p.summed, p.dtype, row * p.cols + column, s);
      const float n = p.round_normalised ? cuda::rounded_to(p.dtype, s * rstd) : s * rstd;
      cuda::store_number(p.y, p.dtype, row * p.cols + column, n * gain_of(p, column));
    }
  }
}

// The team's sum of dweight is kept in its row of partial sums.
FLAGATTN_KERNEL(cuda::kMostRowThreads, 1)
rms_norm_backward_element_kernel(FLAGATTN_KERNEL_ARGUMENT NormBackwardArguments arguments) {
  const RmsNormBackwardParams& p = arguments.params;
  auto& shared = ptx::shared_storage<NormShared>();
  const cuda::RowTeam team(arguments.plan);
  const int cols = static_cast<int>(p.cols);
  float* partial =
      p.dweight == nullptr ? nullptr : static_cast<float*>(p.scratch) + team.index * norm_partial_stride(p.cols);
  for (int i = 0; i < arguments.plan.rows_per_team; ++i) {
    const int64_t row = team.index * arguments.plan.rows_per_team + i;
    const bool exists = row < p.rows;
    const int width = exists ? cols : 0;
    const int64_t first_dy = offset_of_row(p.dy, exists ? row : 0), first_s = offset_of_row(p.s, exists ? row : 0);
    const bool adds = p.dsummed.data != nullptr;
    const int64_t first_dsummed = adds ? offset_of_row(p.dsummed, exists ? row : 0) : 0;
    const float rstd = exists ? ptx::load_global(p.rstd + row) : 0.0f;

    float product = 0.0f;
    for (int column = team.lane; column < width; column += team.lanes) {
      const float g = cuda::load_number(p.dy.data, p.dtype, first_dy + column) * gain_of(p, column);
      product = fmaf(g, cuda::load_number(p.s.data, p.dtype, first_s + column) * rstd, product);
    }
    const float mean = team.sum(product, shared.exchange[i % 2]) / static_cast<float>(cols);

    for (int column = team.lane; column < width; column += team.lanes) {
      const float dy = cuda::load_number(p.dy.data, p.dtype, first_dy + column);
      const float n = cuda::load_number(p.s.data, p.dtype, first_s + column) * rstd;
      float ds = rstd * fmaf(-n, mean, dy * gain_of(p, column));
      if (adds) ds += cuda::load_number(p.dsummed.data, p.dtype, first_dsummed + column);
      cuda::store_number(p.ds, p.dtype, row * p.cols + column, ds);
      if (partial == nullptr) continue;
      ptx::store_global(partial + column, dy * n + (i > 0 ? ptx::load_global(partial + column) : 0.0f));
    }
  }
}

}  // namespace flagattn::sm80
