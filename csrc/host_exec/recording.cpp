#include "host_exec/recording.h"

#include "host_exec/machine.h"

namespace flagattn::host_exec {

std::vector<Recording>& recordings() {
  static std::vector<Recording> list;
  return list;
}

Event& Recording::add(int warp, int kind) {
  std::vector<Event>& events = warps[warp];
  if (events.size() == kMostEvents) {
    is_cut = true;
    return events.back();
  }
  events.emplace_back();
  events.back().order = events_so_far++;
  events.back().kind = static_cast<uint8_t>(kind);
  return events.back();
}

void record(const void* place, Happening what, int which) {
  if (machine->recording == nullptr || !self->warp->accesses.executes(place, self->lane)) return;
  machine->recording->add(self->warp->index, static_cast<int>(what)).which = which;
}

void special_function() { record(__builtin_return_address(0), Happening::kSpecialFunction, 0); }

void note_barrier(int which, uint64_t phase, bool waits) {
  if (machine->recording == nullptr) return;
  Event& event = machine->recording->warps[self->warp->index].back();
  event.which = which;
  event.phase = phase;
  event.waits = waits;
}

void observe_as_last_event() {
  if (observer != nullptr) observer->at(self->warp->index, machine->recording->warps[self->warp->index].size() - 1);
}

// Lanes come one after the other, and some do other things on the way: which of the warp's events it is shows when all
// have come. The n-th load of a lane is the n-th of its warp.
void observe_as_matrix_load() {
  if (observer != nullptr) observer->at_matrix_load(self->warp->index, self->matrix_loads++);
}

int Recording::event_of(const HappensBefore::Access& access) const {
  if (!access.is_matrix_load) return access.event;
  int index = 0, loads = -1;
  for (const Event& event : warps[access.warp]) {
    loads += event.kind == static_cast<int>(Instruction::kMatrixLoad);
    if (loads == access.event) break;
    ++index;
  }
  return index;
}

}  // namespace flagattn::host_exec
