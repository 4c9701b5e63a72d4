// What the host twins of the PTX wrappers ask of the runner that executes kernels on the CPU (csrc/host_exec). Each
// call is made by one CUDA thread; those named "collective" return once every lane of the warp has made the same call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arch/status.h"

namespace flagattn::host_exec {

// Runs body(closure) once for every thread of every block; an error tells what a thread did wrong and where.
struct LaunchShape {
  int blocks;
  int threads;
  int shared_bytes;
};
Status launch(const LaunchShape& shape, void (*body)(const void* closure), const void* closure);

// Position and memory of the running thread.
int thread_index();
int block_index();
std::byte* shared_memory();
uint32_t shared_address(const void* pointer);

// Copies of 16 bytes from global to shared memory, or of zeros, that land at any time up to the wait for their group.
void cp_async_16(uint32_t destination, const void* source, bool in_range);
void cp_async_commit();
void cp_async_wait(int groups_left);

// Plain accesses to 16 bytes of global memory, on 16-byte borders.
void global_read_16(void* value, const void* source);
void global_write_16(void* destination, const void* value);

// Warp collectives.
void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t address, bool transpose);
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool is_bfloat16);
uint32_t shuffle_xor(uint32_t value, int lane_mask);
void sync_warp();

// Barrier `id` of the block for `threads` threads; arriving without waiting is allowed.
void barrier(int id, int threads, bool wait);
void barrier_whole_block();

}  // namespace flagattn::host_exec
