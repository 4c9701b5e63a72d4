// Barriers in shared memory (8 bytes at a multiple of 8), which count arrivals and the bytes of asynchronous copies.
// A phase ends when all arrivals have come and all announced bytes have landed; phases have parity 0, 1, 0, ...
#pragma once

#include "arch/ptx/shared_memory.cuh"

namespace flagattn::ptx {

// Makes a barrier for `arrivals` arrivals per phase (mbarrier.init). Others may use it after fence_mbarrier_init() and
// a barrier of the block.
FLAGATTN_DEVICE void mbarrier_init(SharedAddress barrier, uint32_t arrivals) {
#if FLAGATTN_ON_GPU
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#else
  host_exec::mbarrier_init(barrier, arrivals);
#endif
}

// Shows the barriers that this thread has made to asynchronous copies (fence.mbarrier_init, sm_90).
FLAGATTN_DEVICE void fence_mbarrier_init() {
#if FLAGATTN_ON_GPU
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  host_exec::fence_mbarrier_init();
#endif
}

// Arrives without waiting (mbarrier.arrive).
FLAGATTN_DEVICE void mbarrier_arrive(SharedAddress barrier) {
#if FLAGATTN_ON_GPU
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(barrier) : "memory");
#else
  host_exec::mbarrier_arrive(barrier, 0);
#endif
}

// Announces bytes of copies to this phase, then arrives (mbarrier.arrive.expect_tx, sm_90).
FLAGATTN_DEVICE void mbarrier_arrive_expect(SharedAddress barrier, uint32_t bytes) {
#if FLAGATTN_ON_GPU
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#else
  host_exec::mbarrier_arrive(barrier, bytes);
#endif
}

// Announces bytes of copies to this phase (mbarrier.expect_tx, sm_90).
FLAGATTN_DEVICE void mbarrier_expect(SharedAddress barrier, uint32_t bytes) {
#if FLAGATTN_ON_GPU
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#else
  host_exec::mbarrier_expect(barrier, bytes);
#endif
}

// Whether the phase of this parity has ended; what came before its arrivals, and the bytes, are then visible
// (mbarrier.try_wait.parity, sm_90). Not for loops: those stand in mbarrier_wait.
FLAGATTN_DEVICE bool mbarrier_try_wait(SharedAddress barrier, uint32_t parity) {
#if FLAGATTN_ON_GPU
  uint32_t ended;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(ended)
               : "r"(barrier), "r"(parity)
               : "memory");
  return ended != 0;
#else
  return host_exec::mbarrier_try_wait(barrier, parity);
#endif
}

// Waits for the end of the phase of this parity (mbarrier.try_wait.parity in a loop, sm_90).
FLAGATTN_DEVICE void mbarrier_wait(SharedAddress barrier, uint32_t parity) {
#if FLAGATTN_ON_GPU
  while (!mbarrier_try_wait(barrier, parity)) {
  }
#else
  host_exec::mbarrier_wait(barrier, parity);
#endif
}

// Shows what this thread has written to shared memory to bulk copies and warpgroup products (fence.proxy.async, sm_90).
FLAGATTN_DEVICE void fence_async_proxy() {
#if FLAGATTN_ON_GPU
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  host_exec::fence_async_proxy();
#endif
}

}  // namespace flagattn::ptx
