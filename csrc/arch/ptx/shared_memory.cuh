// Shared memory: one struct per kernel, and the 32-bit addresses that copies and matrix loads take.
#pragma once

#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

// An address in the block's shared window, in bytes.
using SharedAddress = uint32_t;

// The block's dynamic shared memory as the struct whose sizeof the launch asked for, aligned to 1024 bytes.
template <typename SharedStorage>
FLAGATTN_DEVICE SharedStorage& shared_storage() {
  static_assert(alignof(SharedStorage) <= 1024);
#if FLAGATTN_ON_GPU
  extern __shared__ __align__(1024) unsigned char flagattn_shared_bytes[];
  return *reinterpret_cast<SharedStorage*>(flagattn_shared_bytes);
#else
  return *reinterpret_cast<SharedStorage*>(host_exec::shared_memory());
#endif
}

// Converts a pointer into shared memory to its address in the shared window (cvta.to.shared).
FLAGATTN_DEVICE SharedAddress shared_address(const void* pointer) {
#if FLAGATTN_ON_GPU
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
#else
  return host_exec::shared_address(pointer);
#endif
}

}  // namespace flagattn::ptx
