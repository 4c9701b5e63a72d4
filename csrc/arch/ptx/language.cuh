// The CUDA language surface kernels are written in, for nvcc and for the host compiler. Kernels are plain functions of
// one argument (a params struct by value) and contain no raw asm, no <<<>>> and no `extern __shared__`.
#pragma once

#include <cstdint>

#include "arch/host_device.h"

#if defined(__CUDACC__)
#define FLAGATTN_ON_GPU 1
#define FLAGATTN_DEVICE __device__ __forceinline__
#define FLAGATTN_KERNEL(max_threads, min_blocks_per_sm) \
  __global__ void __launch_bounds__(max_threads, min_blocks_per_sm)
#define FLAGATTN_KERNEL_ARGUMENT const __grid_constant__
#define FLAGATTN_UNROLL_ALL _Pragma("unroll")
#define FLAGATTN_UNROLL_NONE _Pragma("unroll 1")
#else
#define FLAGATTN_ON_GPU 0
#define FLAGATTN_DEVICE inline
#define FLAGATTN_KERNEL(max_threads, min_blocks_per_sm) void
#define FLAGATTN_KERNEL_ARGUMENT const
#define FLAGATTN_UNROLL_ALL
#define FLAGATTN_UNROLL_NONE
#include "arch/ptx/host_twins.h"
#endif

namespace flagattn::ptx {

// Index of the running thread in its (one-dimensional) block.
FLAGATTN_DEVICE int thread_index() {
#if FLAGATTN_ON_GPU
  return static_cast<int>(threadIdx.x);
#else
  return host_exec::thread_index();
#endif
}

// The same, read anew at every call: what follows from it is computed again where it is needed, instead of being kept
// in registers around a loop that has none to spare.
FLAGATTN_DEVICE int thread_index_now() {
#if FLAGATTN_ON_GPU
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#else
  return host_exec::thread_index();
#endif
}

// Index of the running block in the (one-dimensional) grid.
FLAGATTN_DEVICE int block_index() {
#if FLAGATTN_ON_GPU
  return static_cast<int>(blockIdx.x);
#else
  return host_exec::block_index();
#endif
}

}  // namespace flagattn::ptx
