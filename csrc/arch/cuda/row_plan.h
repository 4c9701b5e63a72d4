// How row-wise kernels deal rows to threads: pure functions of shapes, never of the GPU, so that neither are the bits.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"
#include "arch/rows.h"

namespace flagattn::cuda {

inline constexpr int kMostRowThreads = 512;  // of a block: each may use 128 registers
inline constexpr int kWarp = 32;
inline constexpr int64_t kMostColumns = int64_t{1} << 30;  // columns are counted in 32 bits

// A team of `lanes` threads works on `rows_per_team` neighbouring rows, one after the other. Teams of up to a warp
// share a block; teams of several warps have one to themselves.
struct RowPlan {
  int lanes;
  int teams;  // of a block
  int rows_per_team;

  constexpr int threads() const { return lanes * teams; }
  constexpr int64_t teams_for(int64_t rows) const { return (rows + rows_per_team - 1) / rows_per_team; }
  constexpr int64_t blocks(int64_t rows) const { return (teams_for(rows) + teams - 1) / teams; }
};

// Threads for a row of so many vectors, if each takes `vectors_per_thread`: a power of two up to a warp, else whole
// warps.
constexpr int lanes_for(int64_t vectors, int vectors_per_thread) {
  const int64_t wanted = (vectors + vectors_per_thread - 1) / vectors_per_thread;
  if (wanted > kMostRowThreads) return kMostRowThreads;
  if (wanted > kWarp) return static_cast<int>((wanted + kWarp - 1) / kWarp * kWarp);
  int lanes = 1;
  while (lanes < wanted) lanes *= 2;
  return lanes;
}

// So many threads that a large GPU is full, and not more, since what a team reads once serves all of its rows.
constexpr int rows_per_team(int64_t rows, int lanes, int64_t threads, int most) {
  const int64_t wanted = rows * lanes / threads;
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

constexpr RowPlan row_plan(int lanes, int rows_per_team) {
  constexpr int kThreads = 128;
  return {lanes, lanes <= kWarp ? kThreads / lanes : 1, rows_per_team};
}

constexpr int64_t vectors_of(int64_t cols, DType dtype) { return (cols * size_of(dtype) + 15) / 16; }

// ---- Whether rows may be read and written in vectors: they start at multiples of 16 bytes and are whole vectors long

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

constexpr bool is_whole(int64_t elements, DType dtype) { return elements * size_of(dtype) % 16 == 0; }

inline bool takes_vectors(const StridedRows& view, int64_t cols, DType dtype) {
  bool takes = is_aligned(view.data) && is_whole(cols, dtype);
  for (int dim = 0; dim < view.num_dims; ++dim) takes = takes && is_whole(view.strides[dim], dtype);
  return takes;
}

}  // namespace flagattn::cuda
