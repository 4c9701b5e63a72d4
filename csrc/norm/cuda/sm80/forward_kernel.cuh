// RMSNorm forward: a team of threads takes some rows, reads each once, and keeps it in registers until it is written.
#pragma once

#include <cmath>

#include "arch/cuda/row_team.cuh"
#include "norm/cuda/sm80/launch.h"

namespace flagattn::sm80 {

struct NormShared {
  cuda::TeamExchange exchange[2];  // in turn: one barrier per row
};

// weight + offset
template <int kCount, typename Params>
FLAGATTN_DEVICE void load_gain(const Params& p, int column, float (&gain)[kCount]) {
  cuda::load_columns(p.weight, p.weight_dtype, column, static_cast<int>(p.cols), gain);
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kCount; ++i) gain[i] += p.offset;
}

// One row; `width` is 0 where there is none.
template <typename T>
struct NormRow {
  const T* x;
  const T* residual;
  T* summed;
  T* y;
  int width;
  bool rounds;

  FLAGATTN_DEVICE NormRow(const RmsNormParams& p, int64_t row, bool exists)
      : x(row_of<const T>(p.x, exists ? row : 0)),
        residual(p.residual.data == nullptr ? nullptr : row_of<const T>(p.residual, exists ? row : 0)),
        summed(static_cast<T*>(p.summed) + row * p.cols),
        y(static_cast<T*>(p.y) + row * p.cols),
        width(exists ? static_cast<int>(p.cols) : 0),
        rounds(p.round_normalised) {}

  // x, or x + residual rounded.
  FLAGATTN_DEVICE ptx::Bytes16 load(int column) const {
    const ptx::Bytes16 packed = cuda::load_vector(x, column, width);
    if (residual == nullptr) return packed;
    float s[cuda::kVector<T>], addend[cuda::kVector<T>];
    cuda::widen<T>(packed, s);
    cuda::widen<T>(cuda::load_vector(residual, column, width), addend);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) s[i] += addend[i];
    return cuda::narrow<T>(s);
  }

  FLAGATTN_DEVICE void write(int column, const ptx::Bytes16& packed, float rstd,
                             const float (&gain)[cuda::kVector<T>]) const {
    if (residual != nullptr) cuda::store_vector(summed, column, width, packed);
    float n[cuda::kVector<T>];
    cuda::widen<T>(packed, n);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) n[i] *= rstd;
    if (rounds) cuda::widen<T>(cuda::narrow<T>(n), n);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) n[i] *= gain[i];
    cuda::store_vector(y, column, width, cuda::narrow<T>(n));
  }
};

template <typename T>
FLAGATTN_DEVICE float sum_of_squares(const ptx::Bytes16& packed) {
  float s[cuda::kVector<T>], sum = 0.0f;
  cuda::widen<T>(packed, s);
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < cuda::kVector<T>; ++i) sum += s[i] * s[i];
  return sum;
}

// More than a block has: 96 registers, so that five blocks of 128 threads fit on a multiprocessor.
inline constexpr int kForwardBound = 640;

// kHeld vectors of a row stay in a thread's registers; a wide row's gain does not.
template <typename T, int kHeld, bool kIsWide>
FLAGATTN_KERNEL(kIsWide ? cuda::kMostRowThreads : kForwardBound, 1)
rms_norm_kernel(FLAGATTN_KERNEL_ARGUMENT NormForwardArguments arguments) {
  const RmsNormParams& p = arguments.params;
  auto& shared = ptx::shared_storage<NormShared>();
  const cuda::RowTeam team(arguments.plan);
  const int rows_per_team = arguments.plan.rows_per_team;

  // The gain of this thread's columns, once for all rows.
  float gain[kIsWide ? 1 : kHeld][cuda::kVector<T>];
  FLAGATTN_UNROLL_ALL
  for (int n = 0; !kIsWide && n < kHeld; ++n) load_gain(p, team.column<T>(n), gain[n]);

  for (int i = 0; i < rows_per_team; ++i) {
    // A team behind the last row reads and writes nothing, but is at every barrier.
    const int64_t number = team.index * rows_per_team + i + (planted(Fault::kWrongRow) ? 1 : 0);
    const bool exists = number < p.rows;
    const NormRow<T> row(p, number, exists);

    // The row into registers, and its sum of squares.
    ptx::Bytes16 held[kHeld];
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kHeld; ++n) held[n] = row.load(team.column<T>(n));
    float squares = 0.0f;
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kHeld; ++n) squares += sum_of_squares<T>(held[n]);
    for (int column = team.column<T>(kHeld); column < row.width; column += team.columns_per_step<T>()) {
      squares += sum_of_squares<T>(row.load(column));
    }
    const float mean = team.sum(squares, shared.exchange[i % 2]) / static_cast<float>(p.cols);
    const float rstd = 1.0f / sqrtf(mean + p.eps);

    // Its results.
    if (exists && team.lane == 0) ptx::store_global(p.rstd + number, rstd);
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < kHeld; ++n) {
      if constexpr (kIsWide) load_gain(p, team.column<T>(n), gain[0]);
      ptx::keep_packed(held[n]);
      row.write(team.column<T>(n), held[n], rstd, gain[kIsWide ? 0 : n]);
    }
    for (int column = team.column<T>(kHeld); column < row.width; column += team.columns_per_step<T>()) {
      load_gain(p, column, gain[0]);
      row.write(column, row.load(column), rstd, gain[0]);
    }
  }
}

}  // namespace flagattn::sm80
