// What warps can do on sm_90 only: stores of matrices, products of 8-bit floats, an elected lane.
#pragma once

#include "tests/host_exec/instructions/matrix.cuh"

namespace flagattn::instructions {

// Stores what was loaded, in six forms; element (row, column) of matrix m must come back, or (column, row) where one of
// the two was transposed.
FLAGATTN_KERNEL(32, 1) store_matrices_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  auto& shared = ptx::shared_storage<Shared>();
  const int lane = ptx::thread_index();
  fill_matrices(shared, lane);
  const ptx::SharedAddress row = ptx::shared_address(shared.words) + 16 * lane;
  uint32_t four[4], two[2], one[1];
  ptx::ldmatrix_x4(four, row);
  ptx::ldmatrix_x2(two, row);
  ptx::ldmatrix_x1(one, row);
  ptx::stmatrix_x4(row + 512 * 1, four);
  ptx::stmatrix_x4_trans(row + 512 * 2, four);
  ptx::stmatrix_x2(row + 512 * 3, two);
  ptx::stmatrix_x2_trans(row + 512 * 4, two);
  ptx::stmatrix_x1(row + 512 * 5, one);
  ptx::stmatrix_x1_trans(row + 512 * 6, one);
  ptx::sync_warp();
  for (int form = 0; form < 6; ++form) {
    for (int i = lane; i < 128; i += 32) arguments.out[128 * form + i] = shared.words[128 * (form + 1) + i];
  }
}

inline bool matrix_stores() {
  Buffer<uint32_t> out(6 * 128);
  if (!run(store_matrices_kernel, 1, 32, {out.device()})) return false;
  out.fetch();
  for (int i = 0; i < 6 * 128; ++i) {  // what the smaller forms do not write is not asked
    const int form = i / 128, matrices = 4 >> (form / 2);
    if (i % 128 >= 32 * matrices) out.data[i] = 0;
  }
  return equal("stmatrix", out.data, [](int i) {
    const int form = i / 128, matrices = 4 >> (form / 2), word = i % 128;
    if (word >= 32 * matrices) return 0u;
    return matrix_pair(word / 32, word % 32, form % 2 != 0);
  });
}

inline bool products_float8() {
  using E4M3 = Float8E4M3;
  using E5M2 = Float8E5M2;
  return product<E4M3, E4M3, 32>("e4m3 e4m3 k32") && product<E4M3, E5M2, 32>("e4m3 e5m2 k32") &&
         product<E5M2, E4M3, 32>("e5m2 e4m3 k32") && product<E5M2, E5M2, 32>("e5m2 e5m2 k32") &&
         product<E4M3, E4M3, 16>("e4m3 e4m3 k16") && product<E4M3, E5M2, 16>("e4m3 e5m2 k16") &&
         product<E5M2, E4M3, 16>("e5m2 e4m3 k16") && product<E5M2, E5M2, 16>("e5m2 e5m2 k16");
}

// One lane of the warp, and of the half that asks, always the same.
FLAGATTN_KERNEL(32, 1) election_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  const int lane = ptx::thread_index();
  uint32_t* out = arguments.out + lane;
  out[0] = ptx::elect_one();
  out[32] = ptx::elect_one();
  out[64] = lane < 16 ? 0 : ptx::elect_one(0xffff0000u);
}

inline bool elections() {
  Buffer<uint32_t> out(3 * 32);
  if (!run(election_kernel, 1, 32, {out.device()})) return false;
  out.fetch();
  const auto votes = [&](int row) {
    uint32_t sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += out.data[32 * row + lane];
    return sum;
  };
  bool same = true;
  for (int lane = 0; lane < 32; ++lane) same = same && out.data[lane] == out.data[32 + lane];
  return same && votes(0) == 1 && votes(2) == 1;
}

inline const std::vector<Check> kMatrixChecksSm90 = {
    {"matrix_stores", matrix_stores}, {"products_float8", products_float8}, {"elections", elections}};

}  // namespace flagattn::instructions
