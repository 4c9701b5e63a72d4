// Shared and global memory: address checks, asynchronous copies, 16-byte accesses.
#include <cstring>

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

namespace {

void check_global(const char* access, const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
    fail("%s 16 bytes at %p, which is not a multiple of 16", access, address);
}

void land_until(Copies& copies, uint64_t end) {
  for (; copies.landed < end; ++copies.landed) {
    const Copies::Copy& copy = copies.pending[copies.landed % Copies::kMostPending];
    std::byte* destination = shared_pointer(copy.destination, 16, 16);
    if (copy.in_range) {
      std::memcpy(destination, copy.source, 16);
    } else {
      std::memset(destination, 0, 16);
    }
  }
}

}  // namespace

// ThreadSanitizer sees the copy where it is issued, as the engine's: ordered after what the thread did before, and
// before what follows a wait for its group, nothing else. When the bytes really move is the schedule's choice.
void cp_async_16(uint32_t destination, const void* source, bool in_range) {
  FLAGATTN_HOST_EXEC_FRAME;
  Copies& copies = self->copies;
  std::byte* target = shared_pointer(destination, 16, 16);
  if (in_range) check_global("cp.async reads", source);
  if (copies.issued - copies.landed == Copies::kMostPending)
    fail("more than %d cp.async under way", Copies::kMostPending);
  if constexpr (tsan::kEnabled) {
    tsan::release(copies.issue_token);
    tsan::ActingAs engine(copies.engine);
    tsan::Frame issued_at(__builtin_return_address(0));
    tsan::acquire(copies.issue_token);
    if (in_range) tsan::read(source, 16);
    tsan::write(target, 16);
  }
  copies.pending[copies.issued++ % Copies::kMostPending] = {destination, source, in_range};
  machine->counters.async_bytes_read += in_range ? 16 : 0;
  const CopyTiming timing = machine->options.copies;
  if (timing == CopyTiming::kEager || (timing == CopyTiming::kRandom && machine->random.one_in(4))) {
    land_until(copies, copies.issued);
  }
}

void cp_async_commit() {
  Copies& copies = self->copies;
  if (copies.groups - copies.groups_waited == Copies::kMostGroups) {
    fail("more than %d groups of cp.async under way", Copies::kMostGroups);
  }
  if constexpr (tsan::kEnabled) {
    // Now, not at the wait: the token must not cover the copies of later groups.
    tsan::ActingAs engine(copies.engine);
    tsan::release(copies.group_token[copies.groups % Copies::kMostGroups]);
  }
  copies.group_end[copies.groups++ % Copies::kMostGroups] = copies.issued;
}

void cp_async_wait(int groups_left) {
  Copies& copies = self->copies;
  for (; copies.groups_waited + groups_left < copies.groups; ++copies.groups_waited) {
    land_until(copies, copies.group_end[copies.groups_waited % Copies::kMostGroups]);
    tsan::acquire(copies.group_token[copies.groups_waited % Copies::kMostGroups]);
  }
}

void check_copies_at_exit(const Copies& copies) {
  uint64_t waited = 0;
  if (copies.groups_waited > 0) waited = copies.group_end[(copies.groups_waited - 1) % Copies::kMostGroups];
  if (copies.issued > waited) fail("the thread returns without having waited for its cp.async");
}

void global_read_16(void* value, const void* source) {
  FLAGATTN_HOST_EXEC_FRAME;
  check_global("a thread reads", source);
  tsan::read(source, 16);
  std::memcpy(value, source, 16);
}

void global_write_16(void* destination, const void* value) {
  FLAGATTN_HOST_EXEC_FRAME;
  check_global("a thread writes", destination);
  tsan::read(value, 16);  // may lie in shared memory
  tsan::write(destination, 16);
  std::memcpy(destination, value, 16);
  machine->counters.global_bytes_written += 16;
}

}  // namespace flagattn::host_exec
