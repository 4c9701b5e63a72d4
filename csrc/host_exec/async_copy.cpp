// cp.async: copies of one thread, in groups, that land at any time up to the wait for their group.
#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

void land_until(Copies& copies, uint64_t end) {
  for (; copies.landed < end; ++copies.landed) {
    const Copies::Copy& copy = copies.pending[copies.landed % Copies::kMostPending];
    std::byte* destination = shared_pointer(copy.destination, copy.bytes, copy.bytes);
    static constexpr std::byte kZeros[16] = {};
    tsan::copy_unseen(destination, copy.in_range ? copy.source : kZeros, copy.bytes);
  }
}

}  // namespace

// ThreadSanitizer sees the copy where it is issued, as the engine's: ordered after what the thread did before, and
// before what follows a wait for its group, nothing else. When the bytes really move is the schedule's choice.
void cp_async(uint32_t destination, const void* source, int bytes, bool in_range) {
  FLAGATTN_HOST_EXEC_FRAME;
  const void* place = __builtin_return_address(0);
  Copies& copies = self->copies;
  std::byte* target = shared_pointer(destination, bytes, bytes);
  if (in_range) check_global("cp.async reads", source, bytes);
  if (copies.issued - copies.landed == Copies::kMostPending)
    fail("more than %d cp.async under way", Copies::kMostPending);
  self->warp->accesses.access(place, Memory::kGlobal, false, self->lane,
                              in_range ? reinterpret_cast<uint64_t>(source) : Accesses::kNowhere, bytes,
                              machine->counters);
  count_access(place, Instruction::kAsyncCopy, Memory::kShared, true, destination, bytes);
  if (tsan::listens()) {
    if (copies.engine == nullptr) copies.engine = tsan::create();
    tsan::release(copies.tokens->issue);
    tsan::ActingAs engine(copies.engine);
    tsan::Frame issued_at(__builtin_return_address(0));
    tsan::acquire(copies.tokens->issue);
    if (in_range) tsan::read(source, bytes);
    tsan::write(target, bytes);
  }
  copies.pending[copies.issued++ % Copies::kMostPending] = {destination, source, bytes, in_range};
  written_by_thread(destination, bytes);
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
  if (copies.engine != nullptr) {
    // Now, not at the wait: the token must not cover the copies of later groups.
    tsan::ActingAs engine(copies.engine);
    tsan::release(copies.tokens->group[copies.groups % Copies::kMostGroups]);
  }
  record(__builtin_return_address(0), Happening::kCopyCommit, static_cast<int>(copies.groups));
  copies.group_end[copies.groups++ % Copies::kMostGroups] = copies.issued;
}

void cp_async_wait(int groups_left) {
  Copies& copies = self->copies;
  for (; copies.groups_waited + groups_left < copies.groups; ++copies.groups_waited) {
    land_until(copies, copies.group_end[copies.groups_waited % Copies::kMostGroups]);
    tsan::acquire(copies.tokens->group[copies.groups_waited % Copies::kMostGroups]);
  }
  record(__builtin_return_address(0), Happening::kCopyWait, static_cast<int>(copies.groups_waited));
}

void check_copies_at_exit(const Copies& copies) {
  uint64_t waited = 0;
  if (copies.groups_waited > 0) waited = copies.group_end[(copies.groups_waited - 1) % Copies::kMostGroups];
  if (copies.issued > waited) fail("the thread returns without having waited for its cp.async");
}

}  // namespace flagattn::host_exec
