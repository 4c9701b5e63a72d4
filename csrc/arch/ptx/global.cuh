// Accesses of one thread to global memory that is touched once, as the row-wise kernels make them.
#pragma once

#include "arch/ptx/copy.cuh"

namespace flagattn::ptx {

// Reads 16 aligned bytes of global memory that are not needed again, past the L1 cache (ld.global.L1::no_allocate.v4).
// The thread may write there later.
FLAGATTN_DEVICE Bytes16 load_global_16_once(const void* source) {
  Bytes16 value;
#if FLAGATTN_ON_GPU
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.words[0]), "=r"(value.words[1]), "=r"(value.words[2]), "=r"(value.words[3])
               : "l"(source));
#else
  host_exec::global_read(&value, source, 16);
#endif
  return value;
}

// Reads an element of 2, 4 or 8 bytes of global memory at a multiple of its size (ld.global).
template <typename Value>
FLAGATTN_DEVICE Value load_element(const Value* source) {
  static_assert(std::is_trivially_copyable_v<Value> &&
                (sizeof(Value) == 2 || sizeof(Value) == 4 || sizeof(Value) == 8));
#if FLAGATTN_ON_GPU
  return *source;
#else
  Value value;
  host_exec::global_read(&value, source, sizeof value);
  return value;
#endif
}

// Writes one (st.global).
template <typename Value>
FLAGATTN_DEVICE void store_element(Value* destination, Value value) {
  static_assert(std::is_trivially_copyable_v<Value> &&
                (sizeof(Value) == 2 || sizeof(Value) == 4 || sizeof(Value) == 8));
#if FLAGATTN_ON_GPU
  *destination = value;
#else
  host_exec::global_write(destination, &value, sizeof value);
#endif
}

}  // namespace flagattn::ptx
