// What the host twins of the PTX wrappers ask of the runner that executes kernels on the CPU (csrc/host_exec). Each
// call is made by one CUDA thread; those named "collective" return once every lane of the warp has made the same call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arch/status.h"
#include "arch/tensor_map.h"

namespace flagattn::host_exec {

// Runs body(closure) once for every thread of every block; an error tells what a thread did wrong and where.
struct LaunchShape {
  int blocks;
  int threads;
  int shared_bytes;
  const char* argument = "";  // of the kernel: its type, as type_name spells it
};
template <typename Type>
const char* type_name() {
  return __PRETTY_FUNCTION__;
}
Status launch(const LaunchShape& shape, void (*body)(const void* closure), const void* closure);

// Of shared memory, what the chip that is played gives a block.
int most_shared_bytes();

// The running thread asks the special-function unit, which only recordings notice: told if `is_recording`.
inline bool is_recording = false;
void special_function();

// Position and memory of the running thread.
int thread_index();
int block_index();
std::byte* shared_memory();
uint32_t shared_address(const void* pointer);

// Copies of 4, 8 or 16 bytes from global to shared memory, or of zeros, that land at any time up to the wait for their
// group.
void cp_async(uint32_t destination, const void* source, int bytes, bool in_range);
void cp_async_commit();
void cp_async_wait(int groups_left);

// Plain accesses to 1, 2, 4, 8 or 16 bytes, at multiples of as many.
void shared_read(void* value, uint32_t address, int bytes);
void shared_write(uint32_t address, const void* value, int bytes);
void global_read(void* value, const void* source, int bytes);
void global_write(void* destination, const void* value, int bytes);

// Warp collectives: exchanges.
enum class Shuffle { kIndex, kUp, kDown, kXor };
uint32_t shuffle(Shuffle kind, uint32_t value, int lane, uint32_t mask, int width);
uint32_t ballot(bool predicate, uint32_t mask);
bool elect_one(uint32_t mask);
void sync_warp(uint32_t mask);

// Warp collectives: 8 x 8 matrices of 16-bit elements between shared memory and registers.
void ldmatrix(uint32_t* matrices, int count, uint32_t address, bool transpose);
void stmatrix(const uint32_t* matrices, int count, uint32_t address, bool transpose);

// Warp collectives: d += a b for 16 x K and K x 8 matrices of `k_bytes` = 16 or 32 bytes along K.
enum class Numbers { kBFloat16, kFloat16, kFloat8E4M3, kFloat8E5M2, kInt8, kUInt8 };
void mma(float (&d)[4], const uint32_t* a, const uint32_t* b, Numbers numbers_a, Numbers numbers_b, int k_bytes);
void mma(int32_t (&d)[4], const uint32_t* a, const uint32_t* b, Numbers numbers_a, Numbers numbers_b, int k_bytes);

// Products of a warpgroup, asynchronous; each warp brings its 16 of the 64 rows. `a` is null where descriptor_a counts.
void wgmma(float* d, int n, const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b, bool accumulates,
           bool is_bfloat16, bool transposes_a, bool transposes_b);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups_left);

// Barriers in shared memory.
void mbarrier_init(uint32_t barrier, uint32_t arrivals);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void mbarrier_expect(uint32_t barrier, uint32_t bytes);
bool mbarrier_try_wait(uint32_t barrier, uint32_t parity);
void mbarrier_wait(uint32_t barrier, uint32_t parity);
void fence_async_proxy();

// Copies of one thread by the bulk engine. Loads report to an mbarrier, the others to groups of the thread.
enum class Reduction { kNone, kAdd, kMin, kMax };
void encode_tensor_map(TensorMap& map, const TensorShape& shape);
void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier);
void bulk_store(void* destination, uint32_t source, uint32_t bytes);
void bulk_reduce_add(void* destination, uint32_t source, uint32_t bytes, TensorType type);
void tensor_load(uint32_t destination, const TensorMap& map, const int32_t* coordinates, int rank, uint32_t barrier);
void tensor_store(const TensorMap& map, uint32_t source, const int32_t* coordinates, int rank, Reduction reduction);
void bulk_commit();
void bulk_wait(int groups_left, bool only_reading);

// Atomic operations on values of 4 or 8 bytes in global memory, given and returned as their bits.
enum class AtomicOperation { kAdd, kMin, kMax, kOr, kAnd, kExchange };
enum class AtomicType { kInt32, kUInt32, kUInt64, kFloat32 };
uint64_t atomic(AtomicOperation operation, AtomicType type, void* address, uint64_t value);
uint32_t atomic_compare_exchange(uint32_t* address, uint32_t expected, uint32_t value);

// Between blocks: those that wait let others run.
void signal(uint32_t* counter, uint32_t value);
void global_wait(const uint32_t* counter, uint32_t least);

// Barrier `id` of the block for `threads` threads; arriving without waiting is allowed.
void barrier(int id, int threads, bool wait);
void barrier_whole_block();

}  // namespace flagattn::host_exec
