// Which thread runs. Fibers give way only at collectives and waits. With seed 0 warps take turns; otherwise the ready
// warp of the highest random priority runs and now and then drops behind all others, which lets single warps run far
// ahead or behind.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "host_exec/machine.h"

namespace flagattn::host_exec {

thread_local Machine* machine;
thread_local Thread* self;

namespace {

void switch_to(Thread* next) {
  Thread* previous = self;
  if (next == previous) return;
  self = next;
  Fiber& to = next != nullptr ? next->fiber : machine->main;
  switch_fiber(previous != nullptr ? previous->fiber : machine->main, to, previous != nullptr && previous->done);
}

Thread* first_ready_lane(Warp& warp) { return &warp.lanes[__builtin_ctz(warp.ready)]; }

Warp* choose_warp() {
  const int count = static_cast<int>(machine->warps.size());
  Warp* chosen = nullptr;
  const int start = self != nullptr ? self->warp->index + 1 : 0;
  for (int i = 0; i < count; ++i) {
    Warp& warp = machine->warps[(start + i) % count];
    if (warp.ready == 0) continue;
    if (machine->options.seed == 0) return &warp;
    if (chosen == nullptr || warp.priority > chosen->priority) chosen = &warp;
  }
  return chosen;
}

// "warp 0: 31 lanes at mma.sync, 1 lane at barrier 0; warp 1: ..."
std::string waiting_places() {
  std::string text;
  for (Warp& warp : machine->warps) {
    std::string places;
    for (uint32_t left = warp.alive; left != 0;) {
      const char* where = warp.lanes[__builtin_ctz(left)].waits_at;
      int lanes = 0;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((left >> lane & 1) == 0 || warp.lanes[lane].waits_at != where) continue;
        left &= ~(1u << lane);
        ++lanes;
      }
      places += (places.empty() ? "" : ", ") + std::to_string(lanes) + (lanes == 1 ? " lane at " : " lanes at ") +
                (where != nullptr ? where : "no wait");
    }
    text +=
        (text.empty() ? "warp " : "; warp ") + std::to_string(warp.index) + ": " + (places.empty() ? "ended" : places);
  }
  return text;
}

void run_another() {
  if (Warp* warp = choose_warp()) return switch_to(first_ready_lane(*warp));
  if (machine->live == 0) return switch_to(nullptr);
  fail("deadlock: %s", waiting_places().c_str());
}

void thread_main() {
  begin_fiber();
  tsan::acquire(machine->start_token);
  machine->body(machine->closure);
  check_copies_at_exit(self->copies);
  if (self->warp->arrived != 0) fail("the thread returns while lanes of its warp wait at %s", self->warp->collective);
  tsan::release(machine->end_token);
  self->done = true;
  self->warp->alive &= ~(1u << self->lane);
  self->warp->ready &= ~(1u << self->lane);
  --machine->live;
  if (self->warp->ready != 0) {
    switch_to(first_ready_lane(*self->warp));
  } else {
    run_another();
  }
  std::abort();  // no one switches back
}

}  // namespace

void fail(const char* format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  machine->failed = true;
  machine->failure = "block " + std::to_string(machine->block) + ", thread " + std::to_string(self->index) + " (warp " +
                     std::to_string(self->warp->index) + ", lane " + std::to_string(self->lane) + "): " + text;
  switch_to(nullptr);
  std::abort();
}

void wait_at(const char* where) {
  Thread* me = self;
  me->waits_at = where;
  me->warp->ready &= ~(1u << me->lane);
  if (me->warp->ready != 0) {
    switch_to(first_ready_lane(*me->warp));
  } else {
    run_another();
  }
  me->waits_at = nullptr;
}

void wake(Warp& warp, uint32_t lanes) { warp.ready |= lanes; }

void may_yield() {
  if (machine->options.seed == 0 || !machine->random.one_in(8)) return;
  self->warp->priority = --machine->lowest_priority;
  switch_to(first_ready_lane(*choose_warp()));
}

void run_threads() {
  for (Thread& thread : machine->threads) prepare(thread.fiber, thread_main);
  tsan::release(machine->start_token);
  self = nullptr;
  run_another();
}

}  // namespace flagattn::host_exec
