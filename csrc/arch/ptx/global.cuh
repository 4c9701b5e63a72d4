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

}  // namespace flagattn::ptx
