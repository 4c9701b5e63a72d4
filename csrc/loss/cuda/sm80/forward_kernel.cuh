// Cross-entropy forward: a team of threads reads a row of logits once, keeping a running maximum and sum.
#pragma once

#include "loss/cuda/sm80/rows.cuh"

namespace flagattn::sm80 {

struct LossShared {
  cuda::TeamExchange exchange[4];
};

// Joins the threads' sums and writes the row's results; every thread of the block calls this.
FLAGATTN_DEVICE void finish_row(const CrossEntropyArguments& a, const cuda::RowTeam& team, LossShared& shared,
                                const RunningSum& own, const LossRow& row) {
  const LossRows& in = a.params.in;
  const LossResults& out = a.params.out;
  const float maximum = team.max(own.maximum, shared.exchange[0]);
  const float shift = maximum == -INFINITY ? 0.0f : maximum;
  const float factor = planted(Fault::kMissingRescale) ? 1.0f : exponential(own.maximum - shift);
  const bool has_top = factor == 1.0f;
  const float below = has_top ? own.rest : (own.ones + own.rest) * factor;
  const float ones = team.sum(has_top ? own.ones : 0.0f, shared.exchange[1]);
  const float rest = team.sum(own.ones + own.rest == 0.0f ? 0.0f : below, shared.exchange[2]);
  const float total = team.sum(own.total, shared.exchange[3]);
  if (team.index >= in.rows || team.lane != 0) return;

  double loss = 0.0, lse = 0.0;
  if (row.is_kept) {
    const int64_t target = offset_of_row(a.params.logits, team.index) + row.target;
    const float target_logit =
        capped(cuda::load_number(a.params.logits.data, a.params.dtype, target), in.options.softcap);
    const double log_sum = log(static_cast<double>(ones) + rest);
    lse = maximum + log_sum;
    loss = log_sum + (static_cast<double>(maximum) - target_logit);
    if (in.options.label_smoothing != 0.0f) {
      const double uniform = lse - total / static_cast<double>(in.classes);
      loss += in.options.label_smoothing * (uniform - loss);
    }
    if (in.options.z_loss != 0.0f) loss += in.options.z_loss * lse * lse;
    loss *= row.weight;
  }
  ptx::store_global(out.maximum + team.index, row.is_kept ? maximum : 0.0f);
  ptx::store_global(out.sum + team.index, row.is_kept ? ones + rest : 1.0f);
  ptx::store_global(out.lse + team.index, static_cast<float>(lse));
  if (a.losses != nullptr) {
    ptx::store_global(a.losses + team.index, loss);
  } else {
    ptx::store_global(out.loss + team.index, static_cast<float>(loss));
  }
}

template <typename T>
FLAGATTN_KERNEL(cuda::kMostRowThreads, 1)
cross_entropy_kernel(FLAGATTN_KERNEL_ARGUMENT CrossEntropyArguments arguments) {
  constexpr int kVector = cuda::kVector<T>;
  const CrossEntropyParams& p = arguments.params;
  const float softcap = p.in.options.softcap;
  const bool totals = p.in.options.label_smoothing != 0.0f;
  auto& shared = ptx::shared_storage<LossShared>();
  const cuda::RowTeam team(arguments.plan);
  const LossRow row(p.in, team.index);

  // Rows that are left out are not looked at.
  RunningSum own;
  const RowVectors<const T> vectors(row_of<const T>(p.logits, row.is_kept ? team.index : 0),
                                    row.is_kept ? static_cast<int>(p.in.classes) : 0);
  for (int first = team.lane; vectors.column(first) < vectors.classes; first += kLossUnroll * team.lanes) {
    ptx::Bytes16 packed[kLossUnroll];
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kLossUnroll; ++n) {
      const int column = vectors.column(first + n * team.lanes);
      if (vectors.is_whole(column)) packed[n] = ptx::load_global_16_once(vectors.row + column);
    }
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kLossUnroll; ++n) {
      const int column = vectors.column(first + n * team.lanes);
      if (vectors.is_whole(column)) {
        float z[kVector];
        cuda::widen<T>(packed[n], z);
        if (softcap != 0.0f) {
          FLAGATTN_UNROLL_ALL
          for (int i = 0; i < kVector; ++i) z[i] = capped(z[i], softcap);
        }
        own.add(z, totals);
        continue;
      }
      const int end = column + kVector < vectors.classes ? column + kVector : vectors.classes;
      for (int i = column < 0 ? 0 : column; i < end; ++i) {
        const float z[1] = {capped(ptx::widen(ptx::load_global(vectors.row + i)), softcap)};
        own.add(z, totals);
      }
    }
  }
  finish_row(arguments, team, shared, own, row);
}

}  // namespace flagattn::sm80
