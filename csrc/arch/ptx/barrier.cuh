// Barriers of a block.
#pragma once

#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

// Waits for every thread of the block and makes their earlier memory accesses visible to each other (barrier 0).
FLAGATTN_DEVICE void sync_block() {
#if FLAGATTN_ON_GPU
  __syncthreads();
#else
  host_exec::barrier_whole_block();
#endif
}

// Waits at barrier kId (1..15) until kThreads threads, a multiple of 32, have arrived there (bar.sync). The id is a
// template argument because a run-time id makes the compiler reserve all sixteen barriers.
template <int kId, int kThreads>
FLAGATTN_DEVICE void named_barrier_sync() {
  static_assert(kId >= 1 && kId <= 15 && kThreads % 32 == 0);
#if FLAGATTN_ON_GPU
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
#else
  host_exec::barrier(kId, kThreads, true);
#endif
}

// Arrives at barrier kId without waiting for the others (bar.arrive).
template <int kId, int kThreads>
FLAGATTN_DEVICE void named_barrier_arrive() {
  static_assert(kId >= 1 && kId <= 15 && kThreads % 32 == 0);
#if FLAGATTN_ON_GPU
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
#else
  host_exec::barrier(kId, kThreads, false);
#endif
}

}  // namespace flagattn::ptx
