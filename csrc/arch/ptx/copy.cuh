// Moving data: asynchronous copies from global to shared memory, and 16-byte accesses to global memory.
#pragma once

#include "arch/ptx/shared_memory.cuh"

namespace flagattn::ptx {

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

// Copies 16 bytes past the L1 cache into shared memory without waiting; writes zeros, and reads nothing, unless
// `in_range` (cp.async.cg with a source size of 16 or 0). Both addresses are multiples of 16.
FLAGATTN_DEVICE void cp_async_16(SharedAddress destination, const void* source, bool in_range) {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(in_range ? 16 : 0)
               : "memory");
#else
  host_exec::cp_async_16(destination, source, in_range);
#endif
}

// Closes this thread's current group of asynchronous copies, which may be empty (cp.async.commit_group).
FLAGATTN_DEVICE void cp_async_commit() {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  host_exec::cp_async_commit();
#endif
}

// Waits until at most the `kGroupsLeft` youngest of this thread's groups are still under way (cp.async.wait_group).
// Other threads see the data only after a barrier that follows.
template <int kGroupsLeft>
FLAGATTN_DEVICE void cp_async_wait() {
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#else
  host_exec::cp_async_wait(kGroupsLeft);
#endif
}

// Reads 16 aligned bytes of global memory that no one writes during the kernel (ld.global.nc.v4).
FLAGATTN_DEVICE Bytes16 load_global_16(const void* source) {
  Bytes16 value;
#if FLAGATTN_ON_GPU
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.words[0]), "=r"(value.words[1]), "=r"(value.words[2]), "=r"(value.words[3])
               : "l"(source));
#else
  host_exec::global_read_16(&value, source);
#endif
  return value;
}

// Writes 16 aligned bytes of global memory (st.global.v4).
FLAGATTN_DEVICE void store_global_16(void* destination, const Bytes16& value) {
#if FLAGATTN_ON_GPU
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(destination), "r"(value.words[0]), "r"(value.words[1]),
               "r"(value.words[2]), "r"(value.words[3])
               : "memory");
#else
  host_exec::global_write_16(destination, &value);
#endif
}

}  // namespace flagattn::ptx
