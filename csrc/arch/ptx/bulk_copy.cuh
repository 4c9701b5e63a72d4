// Asynchronous copies of contiguous bytes by one thread (sm_90): addresses and sizes are multiples of 16. Loads report
// to an mbarrier; stores and reductions belong to groups of the thread.
#pragma once

#include <type_traits>

#include "arch/dtypes.h"
#include "arch/ptx/shared_memory.cuh"
#include "arch/tensor_map.h"

namespace flagattn::ptx {

// Copies from global to shared memory; `barrier`, which must expect them, gets the bytes (cp.async.bulk).
FLAGATTN_DEVICE void bulk_load(SharedAddress destination, const void* source, uint32_t bytes, SharedAddress barrier) {
#if FLAGATTN_ON_GPU
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
#else
  host_exec::bulk_load(destination, source, bytes, barrier);
#endif
}

// Copies from shared to global memory (cp.async.bulk.bulk_group).
FLAGATTN_DEVICE void bulk_store(void* destination, SharedAddress source, uint32_t bytes) {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination), "r"(source), "r"(bytes)
               : "memory");
#else
  host_exec::bulk_store(destination, source, bytes);
#endif
}

// Adds Elements in shared memory to those in global memory, each addition atomic (cp.reduce.async.bulk.add): float,
// int32_t, uint32_t, BFloat16 or Float16.
template <typename Element>
FLAGATTN_DEVICE void bulk_reduce_add(Element* destination, SharedAddress source, uint32_t bytes) {
#if FLAGATTN_ON_GPU
#define FLAGATTN_BULK_REDUCE(operation)                                                                               \
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." operation " [%0], [%1], %2;" ::"l"(destination), \
               "r"(source), "r"(bytes)                                                                                \
               : "memory")
  if constexpr (std::is_same_v<Element, float>) {
    FLAGATTN_BULK_REDUCE("add.f32");
  } else if constexpr (std::is_same_v<Element, int32_t>) {
    FLAGATTN_BULK_REDUCE("add.s32");
  } else if constexpr (std::is_same_v<Element, uint32_t>) {
    FLAGATTN_BULK_REDUCE("add.u32");
  } else if constexpr (std::is_same_v<Element, BFloat16>) {
    FLAGATTN_BULK_REDUCE("add.noftz.bf16");
  } else {
    static_assert(std::is_same_v<Element, Float16>);
    FLAGATTN_BULK_REDUCE("add.noftz.f16");
  }
#undef FLAGATTN_BULK_REDUCE
#else
  host_exec::bulk_reduce_add(destination, source, bytes, tensor_type_of<Element>());
#endif
}

// Closes this thread's current group of stores and reductions, which may be empty (cp.async.bulk.commit_group).
FLAGATTN_DEVICE void bulk_commit() {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  host_exec::bulk_commit();
#endif
}

// Waits until at most the `kGroupsLeft` youngest of this thread's groups are still under way
// (cp.async.bulk.wait_group).
template <int kGroupsLeft>
FLAGATTN_DEVICE void bulk_wait() {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#else
  host_exec::bulk_wait(kGroupsLeft, false);
#endif
}

// The same, but only until shared memory has been read and may be overwritten (cp.async.bulk.wait_group.read).
template <int kGroupsLeft>
FLAGATTN_DEVICE void bulk_wait_read() {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroupsLeft) : "memory");
#else
  host_exec::bulk_wait(kGroupsLeft, true);
#endif
}

}  // namespace flagattn::ptx
