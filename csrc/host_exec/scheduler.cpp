// Which thread runs. Fibers give way only at collectives and waits. With seed 0 warps take turns; otherwise the ready
// warp of the highest random priority runs and now and then drops behind all others, which lets single warps run far
// ahead or behind.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "host_exec/machine.h"

namespace flagattn::host_exec {

constinit thread_local Machine* machine = nullptr;
constinit thread_local Thread* self = nullptr;

namespace {

void switch_to(Thread* next) {
  Thread* previous = self;
  if (next == previous) return;
  self = next;
  Fiber& to = next != nullptr ? next->fiber : machine->main;
  switch_fiber(previous != nullptr ? previous->fiber : machine->main, to, previous != nullptr && previous->done);
}

// Under seeds not always the lowest.
Thread* first_ready_lane(Warp& warp) {
  uint32_t lanes = warp.ready;
  if (machine->options.seed != 0) {
    const uint32_t upper = lanes & ~0u << machine->random.next() % kWarpSize;
    if (upper != 0) lanes = upper;
  }
  return &warp.lanes[__builtin_ctz(lanes)];
}

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

// Lets those go on whose wait for other blocks is over; false if no one waits for any.
bool wake_from_global_waits() {
  bool waiting = false;
  for (Thread& thread : machine->threads) {
    if (thread.awaited.counter == nullptr) continue;
    waiting = true;
    if (thread.awaited.is_there()) wake(*thread.warp, 1u << thread.lane);
  }
  return waiting;
}

// `resumes` says that other blocks have had their turn.
void run_another(bool resumes = false) {
  if (machine->options.copies == CopyTiming::kRandom && machine->random.one_in(4)) land_a_load();
  while (choose_warp() == nullptr && land_a_load()) {
  }
  if (Warp* warp = choose_warp()) return switch_to(first_ready_lane(*warp));
  if (machine->live == 0) return switch_to(nullptr);
  const bool lets_others_run = !resumes && machine->options.seed != 0 && machine->random.one_in(2);
  if (lets_others_run && can_continue(*machine)) return switch_to(nullptr);
  const bool waiting = wake_from_global_waits();
  if (Warp* warp = choose_warp()) return switch_to(first_ready_lane(*warp));
  if (waiting) return switch_to(nullptr);
  fail("deadlock: %s", waiting_places(*machine).c_str());
}

void thread_main() {
  begin_fiber();
  tsan::acquire(machine->start_token);
  machine->body(machine->closure);
  check_copies_at_exit(self->copies);
  check_bulk_at_exit(self->bulk);
  check_products_at_exit(self->warp->products);
  for (const Meeting& meeting : self->warp->meetings) {
    if ((meeting.mask >> self->lane & 1) != 0)
      fail("the thread returns while lanes of its warp wait at %s", meeting.name);
  }
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

std::string waiting_places(const Machine& m) {
  std::string text;
  for (const Warp& warp : m.warps) {
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

void continue_threads() {
  self = nullptr;
  run_another(/*resumes=*/true);
}

bool can_continue(const Machine& m) {
  return std::any_of(m.threads.begin(), m.threads.end(), [](const Thread& t) { return t.awaited.is_there(); });
}

}  // namespace flagattn::host_exec
