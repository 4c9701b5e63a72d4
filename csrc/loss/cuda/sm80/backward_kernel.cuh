// Cross-entropy backward: a team of threads reads a row of logits once and writes its gradient, maybe in their place.
#pragma once

#include "loss/cuda/sm80/rows.cuh"

namespace flagattn::sm80 {

// The gradient of a row's logit x of class j: (e^(z - maximum) scale - smoothing - [j is the target] target_share)
// times dz/dx.
struct LogitGradient {
  float maximum = 0.0f;
  float scale = 0.0f;
  float smoothing = 0.0f;
  float target_share = 0.0f;
  float softcap;

  FLAGATTN_DEVICE LogitGradient(const CrossEntropyBackwardArguments& a, const LossRow& row, int64_t index)
      : softcap(a.params.in.options.softcap) {
    if (!row.is_kept) return;
    const LossOptions& options = a.params.in.options;
    const LossUpstream& upstream = a.params.upstream;
    maximum = ptx::load_global(upstream.maximum + index);
    const float sum = ptx::load_global(upstream.sum + index);
    float dloss = 0.0f;
    if (upstream.dloss != nullptr) {
      const float given = ptx::load_global(upstream.dloss + (options.reduction == Reduction::kNone ? index : 0));
      const float divisor = a.divisor == nullptr ? 1.0f : static_cast<float>(ptx::load_global(a.divisor));
      dloss = given * (row.weight / divisor);
    }
    float share = dloss + (upstream.dlse == nullptr ? 0.0f : ptx::load_global(upstream.dlse + index));
    if (options.z_loss != 0.0f) share += dloss * 2.0f * options.z_loss * (maximum + logf(sum));
    scale = share / sum;
    smoothing = dloss * options.label_smoothing / static_cast<float>(a.params.in.classes);
    target_share = dloss * (1.0f - options.label_smoothing);
  }

  FLAGATTN_DEVICE float of(float x, bool is_target) const {
    const float z = capped(x, softcap);
    const float gradient = fmaf(exponential(z - maximum), scale, -smoothing) - (is_target ? target_share : 0.0f);
    if (softcap == 0.0f) return gradient;
    // 1 - tanh^2 = 4 u / (1 + u)^2 with u = e^(-2 |x| / softcap): the difference would cancel where tanh is near 1.
    const float u = exponential(-2.0f * fabsf(x) / softcap), above = 1.0f + u;
    return gradient * (4.0f * u / (above * above));
  }
};

template <typename T>
FLAGATTN_KERNEL(cuda::kMostRowThreads, 2)
cross_entropy_backward_kernel(FLAGATTN_KERNEL_ARGUMENT CrossEntropyBackwardArguments arguments) {
  constexpr int kVector = cuda::kVector<T>;
  const CrossEntropyBackwardParams& p = arguments.params;
  const cuda::RowTeam team(arguments.plan);
  if (team.index >= p.in.rows) return;
  const LossRow row(p.in, planted(Fault::kWrongRow) ? 0 : team.index);
  const LogitGradient gradient(arguments, row, team.index);
  const RowVectors<const T> from(row_of<const T>(p.logits, team.index), static_cast<int>(p.in.classes));
  const RowVectors<T> to(row_of<T>(p.dlogits, team.index), static_cast<int>(p.in.classes));
  const bool by_vector = from.skew == to.skew;

  // Rows that are left out become zeros without being read.
  for (int first = team.lane; from.column(first) < from.classes; first += kLossUnroll * team.lanes) {
    ptx::Bytes16 packed[kLossUnroll] = {};
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kLossUnroll; ++n) {
      const int column = from.column(first + n * team.lanes);
      if (row.is_kept && from.is_whole(column)) packed[n] = ptx::load_global_16_once(from.row + column);
    }
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kLossUnroll; ++n) {
      const int column = from.column(first + n * team.lanes);
      if (from.is_whole(column) && by_vector) {
        float x[kVector];
        cuda::widen<T>(packed[n], x);
        FLAGATTN_UNROLL_ALL
        for (int i = 0; i < kVector; ++i) x[i] = row.is_kept ? gradient.of(x[i], column + i == row.target) : 0.0f;
        ptx::store_global_16(to.row + column + (planted(Fault::kStrayWrite) ? kVector : 0), cuda::narrow<T>(x));
        continue;
      }
      const int end = column + kVector < from.classes ? column + kVector : from.classes;
      for (int i = column < 0 ? 0 : column; i < end; ++i) {
        float dx = 0.0f;
        if (row.is_kept) dx = gradient.of(ptx::widen(ptx::load_global(from.row + i)), i == row.target);
        cuda::store_number(to.row, p.dtype, i, dx);
      }
    }
  }
}

}  // namespace flagattn::sm80
