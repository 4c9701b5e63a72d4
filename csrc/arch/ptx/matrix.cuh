// Tensor cores: fragments between shared memory and registers (ldmatrix, stmatrix), and matrix products of a warp
// (mma.sync).
#pragma once

#include <type_traits>

#include "arch/dtypes.h"
#include "arch/ptx/shared_memory.cuh"

namespace flagattn::ptx {

// Loads four 8 x 8 matrices of 16-bit elements. Lane l names row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned) and
// receives of each matrix the elements (l / 4, 2 * (l % 4)) and (l / 4, 2 * (l % 4) + 1) (ldmatrix.x4).
FLAGATTN_DEVICE void ldmatrix_x4(uint32_t (&matrices)[4], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
#else
  host_exec::ldmatrix(matrices, 4, row, false);
#endif
}

// Like ldmatrix_x4, but each lane receives the elements of the transposed matrices (ldmatrix.x4.trans).
FLAGATTN_DEVICE void ldmatrix_x4_trans(uint32_t (&matrices)[4], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
#else
  host_exec::ldmatrix(matrices, 4, row, true);
#endif
}

// The same for two 8 x 8 matrices. Lane l < 16 names row l % 8 of matrix l / 8; the other lanes' addresses are not used
// (ldmatrix.x2).
FLAGATTN_DEVICE void ldmatrix_x2(uint32_t (&matrices)[2], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(matrices[0]), "=r"(matrices[1])
               : "r"(row)
               : "memory");
#else
  host_exec::ldmatrix(matrices, 2, row, false);
#endif
}

// Like ldmatrix_x2, but each lane receives the elements of the transposed matrices (ldmatrix.x2.trans).
FLAGATTN_DEVICE void ldmatrix_x2_trans(uint32_t (&matrices)[2], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(matrices[0]), "=r"(matrices[1])
               : "r"(row)
               : "memory");
#else
  host_exec::ldmatrix(matrices, 2, row, true);
#endif
}

// The same for one 8 x 8 matrix. Lane l < 8 names row l; the other lanes' addresses are not used
// (ldmatrix.x1).
FLAGATTN_DEVICE void ldmatrix_x1(uint32_t (&matrices)[1], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(matrices[0]) : "r"(row) : "memory");
#else
  host_exec::ldmatrix(matrices, 1, row, false);
#endif
}

// Like ldmatrix_x1, but each lane receives the elements of the transposed matrix (ldmatrix.x1.trans).
FLAGATTN_DEVICE void ldmatrix_x1_trans(uint32_t (&matrices)[1], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(matrices[0]) : "r"(row) : "memory");
#else
  host_exec::ldmatrix(matrices, 1, row, true);
#endif
}

// Stores what ldmatrix_x4 loads, to the rows that the lanes name (stmatrix.x4, sm_90).
FLAGATTN_DEVICE void stmatrix_x4(SharedAddress row, const uint32_t (&matrices)[4]) {
#if FLAGATTN_ON_GPU
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(matrices[0]),
               "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
#else
  host_exec::stmatrix(matrices, 4, row, false);
#endif
}

// Like stmatrix_x4, but of the transposed matrices (stmatrix.x4.trans).
FLAGATTN_DEVICE void stmatrix_x4_trans(SharedAddress row, const uint32_t (&matrices)[4]) {
#if FLAGATTN_ON_GPU
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(matrices[0]),
               "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
#else
  host_exec::stmatrix(matrices, 4, row, true);
#endif
}

// The same for what ldmatrix_x2 loads (stmatrix.x2, sm_90).
FLAGATTN_DEVICE void stmatrix_x2(SharedAddress row, const uint32_t (&matrices)[2]) {
#if FLAGATTN_ON_GPU
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(matrices[0]), "r"(matrices[1])
               : "memory");
#else
  host_exec::stmatrix(matrices, 2, row, false);
#endif
}

// Like stmatrix_x2, but of the transposed matrices (stmatrix.x2.trans).
FLAGATTN_DEVICE void stmatrix_x2_trans(SharedAddress row, const uint32_t (&matrices)[2]) {
#if FLAGATTN_ON_GPU
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(matrices[0]),
               "r"(matrices[1])
               : "memory");
#else
  host_exec::stmatrix(matrices, 2, row, true);
#endif
}

// The same for what ldmatrix_x1 loads (stmatrix.x1, sm_90).
FLAGATTN_DEVICE void stmatrix_x1(SharedAddress row, const uint32_t (&matrices)[1]) {
#if FLAGATTN_ON_GPU
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(row), "r"(matrices[0]) : "memory");
#else
  host_exec::stmatrix(matrices, 1, row, false);
#endif
}

// Like stmatrix_x1, but of the transposed matrix (stmatrix.x1.trans).
FLAGATTN_DEVICE void stmatrix_x1_trans(SharedAddress row, const uint32_t (&matrices)[1]) {
#if FLAGATTN_ON_GPU
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(row), "r"(matrices[0]) : "memory");
#else
  host_exec::stmatrix(matrices, 1, row, true);
#endif
}

}  // namespace flagattn::ptx
