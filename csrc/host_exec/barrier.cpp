// Barriers of a block, numbered 0 to 15.
#include "host_exec/machine.h"

namespace flagattn::host_exec {

namespace {

void meet(const void* place, int id, int threads, bool wait) {
  static constexpr const char* kNames[16] = {
      "barrier 0", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
      "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  if (id < 0 || id > 15) fail("barrier %d does not exist", id);
  if (threads <= 0 || threads % kWarpSize != 0 || threads > machine->shape.threads) {
    fail("barrier %d for %d threads of a block of %d", id, threads, machine->shape.threads);
  }
  Barrier& b = machine->barriers[id];
  if (b.arrived > 0 && b.threads != threads) {
    fail("barrier %d is used for %d threads while others use it for %d", id, threads, b.threads);
  }
  if (self->warp->accesses.executes(place, self->lane)) {
    count(Instruction::kBarrier);
    machine->counters.barrier_waits += wait;
    note_barrier(id, b.phase, wait);
  }
  tsan::Token& token = machine->tokens->barrier[id][b.phase % 2];
  tsan::release(token);
  b.threads = threads;
  if (++b.arrived < threads) {
    if (!wait) return;
    b.waiting[self->warp->index] |= 1u << self->lane;
    wait_at(kNames[id]);
  } else {
    b.arrived = 0;
    ++b.phase;
    for (Warp& warp : machine->warps) {
      wake(warp, b.waiting[warp.index]);
      b.waiting[warp.index] = 0;
    }
  }
  if (wait) tsan::acquire(token);
  may_yield();
}

}  // namespace

void barrier(int id, int threads, bool wait) {
  FLAGATTN_HOST_EXEC_FRAME;
  meet(__builtin_return_address(0), id, threads, wait);
}

void barrier_whole_block() {
  FLAGATTN_HOST_EXEC_FRAME;
  meet(__builtin_return_address(0), 0, machine->shape.threads, true);
}

}  // namespace flagattn::host_exec
