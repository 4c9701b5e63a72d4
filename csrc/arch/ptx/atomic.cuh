// Atomic operations on global memory and waiting between blocks. Operations are relaxed unless their name says more:
// they order nothing else. Blocks talk through signal() and global_wait().
#pragma once

#include <cstring>
#include <type_traits>

#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

#if !FLAGATTN_ON_GPU
// A host call on the bits of a 4-byte or 8-byte value.
template <typename Value>
constexpr host_exec::AtomicType atomic_type_of() {
  using host_exec::AtomicType;
  if constexpr (std::is_same_v<Value, float>) return AtomicType::kFloat32;
  if constexpr (std::is_same_v<Value, int32_t>) return AtomicType::kInt32;
  if constexpr (std::is_same_v<Value, uint32_t>) return AtomicType::kUInt32;
  if constexpr (std::is_same_v<Value, uint64_t>) return AtomicType::kUInt64;
}

template <typename Value>
Value atomic_on_host(host_exec::AtomicOperation operation, Value* address, Value value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = host_exec::atomic(operation, atomic_type_of<Value>(), address, bits);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
#endif

// Adds to *address and returns what was there (atom.add): int32_t, uint32_t, uint64_t or float.
template <typename Value>
FLAGATTN_DEVICE Value atomic_add(Value* address, Value value) {
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<Value, uint64_t>) {
    return atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
  } else {
    return atomicAdd(address, value);
  }
#else
  return atomic_on_host(host_exec::AtomicOperation::kAdd, address, value);
#endif
}

// Puts the smaller of *address and the value there and returns what was there (atom.min): int32_t or uint32_t.
template <typename Value>
FLAGATTN_DEVICE Value atomic_min(Value* address, Value value) {
#if FLAGATTN_ON_GPU
  return atomicMin(address, value);
#else
  return atomic_on_host(host_exec::AtomicOperation::kMin, address, value);
#endif
}

// The same for the larger of the two (atom.max).
template <typename Value>
FLAGATTN_DEVICE Value atomic_max(Value* address, Value value) {
#if FLAGATTN_ON_GPU
  return atomicMax(address, value);
#else
  return atomic_on_host(host_exec::AtomicOperation::kMax, address, value);
#endif
}

// Sets bits of *address and returns what was there (atom.or): uint32_t.
FLAGATTN_DEVICE uint32_t atomic_or(uint32_t* address, uint32_t value) {
#if FLAGATTN_ON_GPU
  return atomicOr(address, value);
#else
  return atomic_on_host(host_exec::AtomicOperation::kOr, address, value);
#endif
}

// Keeps bits of *address and returns what was there (atom.and): uint32_t.
FLAGATTN_DEVICE uint32_t atomic_and(uint32_t* address, uint32_t value) {
#if FLAGATTN_ON_GPU
  return atomicAnd(address, value);
#else
  return atomic_on_host(host_exec::AtomicOperation::kAnd, address, value);
#endif
}

// Replaces *address and returns what was there (atom.exch): uint32_t.
FLAGATTN_DEVICE uint32_t atomic_exchange(uint32_t* address, uint32_t value) {
#if FLAGATTN_ON_GPU
  return atomicExch(address, value);
#else
  return atomic_on_host(host_exec::AtomicOperation::kExchange, address, value);
#endif
}

// Replaces *address if it is `expected`, and returns what was there (atom.cas): uint32_t.
FLAGATTN_DEVICE uint32_t atomic_compare_exchange(uint32_t* address, uint32_t expected, uint32_t value) {
#if FLAGATTN_ON_GPU
  return atomicCAS(address, expected, value);
#else
  return host_exec::atomic_compare_exchange(address, expected, value);
#endif
}

// Adds to *address without asking what was there (red.add): int32_t, uint32_t, uint64_t or float.
template <typename Value>
FLAGATTN_DEVICE void reduce_add(Value* address, Value value) {
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<Value, float>) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory");
  } else if constexpr (std::is_same_v<Value, uint64_t>) {
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
  } else {
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
  }
#else
  static_cast<void>(atomic_on_host(host_exec::AtomicOperation::kAdd, address, value));
#endif
}

// Tells other blocks of progress: adds to *counter after all that this thread did before, and all that it saw others do
// (red.release.gpu.add).
FLAGATTN_DEVICE void signal(uint32_t* counter, uint32_t value = 1) {
#if FLAGATTN_ON_GPU
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
#else
  host_exec::signal(counter, value);
#endif
}

// Waits until other blocks have brought *counter to at least `least`, and sees what they did before they signalled
// (ld.acquire.gpu in a loop). Blocks that wait for each other must fit on the GPU together; blocks start in order.
FLAGATTN_DEVICE void global_wait(const uint32_t* counter, uint32_t least) {
#if FLAGATTN_ON_GPU
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < least);
#else
  host_exec::global_wait(counter, least);
#endif
}

}  // namespace flagattn::ptx
