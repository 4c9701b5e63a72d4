#include "host_exec/recording.h"

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

// "Y" of "... [with T = X::Y]", the compiler's way to spell a type.
std::string last_name(const std::string& text) {
  const size_t end = text.find_last_not_of("]");
  const size_t begin = text.find_last_of(" :") + 1;
  return text.substr(begin, end + 1 - begin);
}

}  // namespace

std::unique_ptr<Recording> begin_recording(const Machine& m) {
  if (m.options.recorded_block != m.block) return nullptr;
  auto recording = std::make_unique<Recording>();
  recording->kernel = last_name(m.shape.argument);
  recording->blocks = m.shape.blocks;
  recording->block = m.block;
  recording->threads = m.shape.threads;
  recording->shared_bytes = m.shape.shared_bytes;
  recording->warps.resize(m.warps.size());
  recording->order = std::make_unique<HappensBefore>(m.shape.threads, m.shared, m.shape.shared_bytes);
  return recording;
}

void end_recording(Machine& m) {
  observer = nullptr;
  if (m.recording == nullptr) return;
  m.recording->failure = m.failure;
  if constexpr (!tsan::kEnabled) {  // the observer's engines go with it
    for (Warp& warp : m.warps) warp.products.engine = nullptr;
    for (Thread& thread : m.threads) thread.copies.engine = nullptr;
  }
  for (Warp& warp : m.warps) warp.accesses.settle(m.counters);
  for (Warp& warp : m.warps) warp.accesses.note_in(nullptr);
  recordings().push_back(std::move(*m.recording));
  m.recording.reset();
}

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
