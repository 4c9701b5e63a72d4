// Shared and global memory: address checks, and accesses of one thread.
#include "host_exec/machine.h"

namespace flagattn::host_exec {

std::byte* shared_memory() { return machine->shared; }

uint32_t shared_address(const void* pointer) {
  const auto offset = static_cast<const std::byte*>(pointer) - machine->shared;
  if (offset < 0 || offset > machine->shape.shared_bytes)
    fail("the pointer whose shared address is asked for is not shared");
  return kSharedBase + static_cast<uint32_t>(offset);
}

std::byte* shared_pointer(uint32_t address, int bytes, int alignment) {
  if (address < kSharedBase || address + bytes > kSharedBase + machine->shape.shared_bytes) {
    fail("shared address 0x%x + %d lies outside the block's %d bytes", address, bytes, machine->shape.shared_bytes);
  }
  if (address % alignment != 0) fail("shared address 0x%x is not a multiple of %d", address, alignment);
  return machine->shared + (address - kSharedBase);
}

void check_global(const char* access, const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail("%s %d bytes at %p, which is not a multiple of %d", access, bytes, address, bytes);
}

void count(Instruction kind) {
  ++machine->counters.instructions[static_cast<int>(kind)];
  if (machine->recording != nullptr) machine->recording->add(self->warp->index, static_cast<int>(kind));
}

void count_at(const void* place, Instruction kind) {
  if (self->warp->accesses.executes(place, self->lane)) count(kind);
}

void count_access(const void* place, Instruction kind, Memory memory, bool writes, uint64_t address, int bytes) {
  if (self->warp->accesses.access(place, memory, writes, self->lane, address, bytes, machine->counters)) count(kind);
  if (observer != nullptr) observer->at(self->warp->index, self->warp->accesses.event());
}

void shared_read(void* value, uint32_t address, int bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  const std::byte* source = shared_pointer(address, bytes, bytes);
  count_access(__builtin_return_address(0), Instruction::kSharedLoad, Memory::kShared, false, address, bytes);
  tsan::read(source, bytes);
  tsan::copy_unseen(value, source, bytes);
}

void shared_write(uint32_t address, const void* value, int bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  std::byte* destination = shared_pointer(address, bytes, bytes);
  count_access(__builtin_return_address(0), Instruction::kSharedStore, Memory::kShared, true, address, bytes);
  tsan::write(destination, bytes);
  tsan::copy_unseen(destination, value, bytes);
  written_by_thread(address, bytes);
}

void global_read(void* value, const void* source, int bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  check_global("a thread reads", source, bytes);
  count_access(__builtin_return_address(0), Instruction::kGlobalLoad, Memory::kGlobal, false,
               reinterpret_cast<uint64_t>(source), bytes);
  tsan::read(source, bytes);
  tsan::copy_unseen(value, source, bytes);
}

void global_write(void* destination, const void* value, int bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  check_global("a thread writes", destination, bytes);
  count_access(__builtin_return_address(0), Instruction::kGlobalStore, Memory::kGlobal, true,
               reinterpret_cast<uint64_t>(destination), bytes);
  tsan::read(value, bytes);  // may lie in shared memory
  tsan::write(destination, bytes);
  tsan::copy_unseen(destination, value, bytes);
}

}  // namespace flagattn::host_exec
