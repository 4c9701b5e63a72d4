// Barriers in shared memory, and what threads show to the asynchronous engines.
#include "host_exec/mbarrier.h"

#include <cstring>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

// What the runner leaves in the barrier's 8 bytes, so that it sees when they are overwritten.
uint64_t mark_of(uint32_t barrier) { return 0x62617272696572ull << 8 ^ barrier; }

Mbarrier& at(uint32_t barrier) {
  uint64_t mark;
  std::memcpy(&mark, shared_pointer(barrier, 8, 8), sizeof mark);
  const auto found = machine->mbarriers.find(barrier);
  if (found == machine->mbarriers.end()) fail("the mbarrier at 0x%x is used before it is initialised", barrier);
  if (mark != mark_of(barrier)) fail("the mbarrier at 0x%x has been overwritten", barrier);
  return found->second;
}

// By a thread, which ThreadSanitizer sees read the barrier: whoever makes it must have come before.
Mbarrier& used(uint32_t barrier) {
  Mbarrier& b = at(barrier);
  tsan::read(shared_pointer(barrier, 8, 8), 8);
  return b;
}

void end_phase_if_complete(uint32_t address, Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.pending = b.arrivals;
  if (machine->recording != nullptr) {
    Recording& recording = *machine->recording;
    recording.phase_ends.push_back({recording.events_so_far++, static_cast<int>(address), b.phase});
  }
  ++b.phase;
  for (Warp& warp : machine->warps) {
    wake(warp, b.waiting[warp.index]);
    b.waiting[warp.index] = 0;
  }
}

// The phase of that parity that is under way or was last.
uint64_t awaited_phase(const Mbarrier& b, uint32_t parity) {
  return b.phase - ((b.phase & 1) != (parity & 1) && b.phase > 0 ? 1 : 0);
}

bool has_ended(Mbarrier& b, uint32_t parity) {
  if ((b.phase & 1) == (parity & 1)) return false;
  tsan::acquire(b.tokens[(b.phase - 1) % kMbarrierTokens]);
  return true;
}

void count_barrier(const void* place, uint32_t barrier, uint64_t phase, bool waits) {
  if (!self->warp->accesses.executes(place, self->lane)) return;
  count(Instruction::kBarrier);
  machine->counters.barrier_waits += waits;
  note_barrier(static_cast<int>(barrier), phase, waits);
}

}  // namespace

void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  FLAGATTN_HOST_EXEC_FRAME;
  if (arrivals == 0 || arrivals > (1u << 20) - 1) fail("an mbarrier for %u arrivals", arrivals);
  std::byte* memory = shared_pointer(barrier, 8, 8);
  tsan::write(memory, 8);
  const uint64_t mark = mark_of(barrier);
  std::memcpy(memory, &mark, sizeof mark);
  const tsan::Unseen unseen;
  machine->mbarriers.erase(barrier);
  Mbarrier& b = machine->mbarriers[barrier];
  b.arrivals = b.pending = arrivals;
  b.made_by = self->index;
  count_at(__builtin_return_address(0), Instruction::kBarrier);
}

void fence_mbarrier_init() {
  for (auto& [address, b] : machine->mbarriers) b.shown_to_engine |= b.made_by == self->index;
}

void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  Mbarrier& b = used(barrier);
  count_barrier(__builtin_return_address(0), barrier, b.phase, false);
  if (b.pending == 0) fail("the mbarrier at 0x%x gets more than its %u arrivals", barrier, b.arrivals);
  tsan::release(b.tokens[b.phase % kMbarrierTokens]);
  b.bytes += expected_bytes;
  --b.pending;
  end_phase_if_complete(barrier, b);
  may_yield();
}

void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  used(barrier).bytes += bytes;
}

bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  FLAGATTN_HOST_EXEC_FRAME;
  Mbarrier& b = used(barrier);
  count_barrier(__builtin_return_address(0), barrier, awaited_phase(b, parity), false);
  if (has_ended(b, parity)) return true;
  may_yield();
  return false;
}

void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  FLAGATTN_HOST_EXEC_FRAME;
  count_barrier(__builtin_return_address(0), barrier, awaited_phase(at(barrier), parity), true);
  while (!has_ended(used(barrier), parity)) {
    at(barrier).waiting[self->warp->index] |= 1u << self->lane;
    wait_at("an mbarrier");
  }
  may_yield();
}

void mbarrier_complete(uint32_t barrier, int64_t bytes) {
  Mbarrier& b = at(barrier);
  tsan::release(b.tokens[b.phase % kMbarrierTokens]);
  b.bytes -= bytes;
  end_phase_if_complete(barrier, b);
}

void check_mbarrier_of_engine(uint32_t barrier) {
  if (!at(barrier).shown_to_engine) {
    fail("a copy reports to the mbarrier at 0x%x, whose maker has not called fence_mbarrier_init", barrier);
  }
}

// ---- The proxy fence: 16-byte chunks of shared memory that a thread has written and not shown to the engines.

void written_by_thread(uint32_t address, int bytes) {
  const tsan::Unseen unseen;
  for (uint32_t chunk = (address - kSharedBase) / 16; chunk <= (address + bytes - 1 - kSharedBase) / 16; ++chunk) {
    machine->hidden_by[chunk] = static_cast<uint16_t>(self->index + 1);
    self->hides.push_back(chunk);
  }
}

void fence_async_proxy() {
  for (const uint32_t chunk : self->hides) {
    if (machine->hidden_by[chunk] == self->index + 1) machine->hidden_by[chunk] = 0;
  }
  self->hides.clear();
  fence_mbarrier_init();
}

void check_shown_to_engine(uint32_t address, const char* access) {
  const int thread = machine->hidden_by[(address - kSharedBase) / 16];
  if (thread == 0) return;
  fail("%s shared memory at 0x%x, which thread %d has written without fence_async_proxy", access, address, thread - 1);
}

}  // namespace flagattn::host_exec
