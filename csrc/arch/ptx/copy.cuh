// Moving data: asynchronous copies from global to shared memory, and accesses of one thread to either.
#pragma once

#include <cstring>
#include <type_traits>

#include "arch/ptx/shared_memory.cuh"

namespace flagattn::ptx {

struct alignas(8) Bytes8 {
  uint32_t words[2];
};
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
  host_exec::cp_async(destination, source, 16, in_range);
#endif
}

// The same for 4 or 8 bytes, through the L1 cache (cp.async.ca). Both addresses are multiples of kBytes.
template <int kBytes>
FLAGATTN_DEVICE void cp_async(SharedAddress destination, const void* source, bool in_range) {
  static_assert(kBytes == 4 || kBytes == 8);
#if FLAGATTN_ON_GPU
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination), "l"(source), "n"(kBytes),
               "r"(in_range ? kBytes : 0)
               : "memory");
#else
  host_exec::cp_async(destination, source, kBytes, in_range);
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
  host_exec::global_read(&value, source, 16);
#endif
  return value;
}

// Reads 16 aligned bytes of global memory that other blocks wrote before they signalled, past the L1 cache
// (ld.global.cg.v4).
FLAGATTN_DEVICE Bytes16 load_global_written_16(const void* source) {
  Bytes16 value;
#if FLAGATTN_ON_GPU
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.words[0]), "=r"(value.words[1]), "=r"(value.words[2]), "=r"(value.words[3])
               : "l"(source)
               : "memory");
#else
  host_exec::global_read(&value, source, 16);
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
  host_exec::global_write(destination, &value, 16);
#endif
}

// Reads a value of 4, 8 or 16 bytes from shared memory, at a multiple of its size (ld.shared).
template <typename Value>
FLAGATTN_DEVICE Value load_shared(SharedAddress source) {
  static_assert(std::is_trivially_copyable_v<Value> &&
                (sizeof(Value) == 4 || sizeof(Value) == 8 || sizeof(Value) == 16));
  Value value;
#if FLAGATTN_ON_GPU
  uint32_t words[sizeof(Value) / 4];
  if constexpr (sizeof(Value) == 4) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[0]) : "r"(source) : "memory");
  } else if constexpr (sizeof(Value) == 8) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(source) : "memory");
  } else {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(source)
                 : "memory");
  }
  std::memcpy(&value, words, sizeof value);
#else
  host_exec::shared_read(&value, source, sizeof value);
#endif
  return value;
}

// Writes a value of 4, 8 or 16 bytes to shared memory, at a multiple of its size (st.shared).
template <typename Value>
FLAGATTN_DEVICE void store_shared(SharedAddress destination, const Value& value) {
  static_assert(std::is_trivially_copyable_v<Value> &&
                (sizeof(Value) == 4 || sizeof(Value) == 8 || sizeof(Value) == 16));
#if FLAGATTN_ON_GPU
  uint32_t words[sizeof(Value) / 4];
  std::memcpy(words, &value, sizeof value);
  if constexpr (sizeof(Value) == 4) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(destination), "r"(words[0]) : "memory");
  } else if constexpr (sizeof(Value) == 8) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(destination), "r"(words[0]), "r"(words[1]) : "memory");
  } else {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(destination), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
  }
#else
  host_exec::shared_write(destination, &value, sizeof value);
#endif
}

// Reads a value of 1, 2, 4 or 8 bytes of global memory, at a multiple of its size (ld.global).
template <typename Value>
FLAGATTN_DEVICE Value load_global(const Value* source) {
  static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) <= 8 &&
                (sizeof(Value) & (sizeof(Value) - 1)) == 0);
#if FLAGATTN_ON_GPU
  return *source;
#else
  Value value;
  host_exec::global_read(&value, source, sizeof value);
  return value;
#endif
}

// Writes a value of 2, 4 or 8 bytes to global memory, at a multiple of its size (st.global).
template <typename Value>
FLAGATTN_DEVICE void store_global(Value* destination, Value value) {
  static_assert(std::is_trivially_copyable_v<Value> &&
                (sizeof(Value) == 2 || sizeof(Value) == 4 || sizeof(Value) == 8));
#if FLAGATTN_ON_GPU
  *destination = value;
#else
  host_exec::global_write(destination, &value, sizeof value);
#endif
}

}  // namespace flagattn::ptx
