#include "host_exec/accesses.h"

#include <algorithm>

#include "host_exec/sanitizer.h"

namespace flagattn::host_exec {
namespace {

constexpr int kLanes = 32, kBanks = 32, kWordBytes = 4, kSectorBytes = 32;
constexpr uint32_t kEveryLane = 0xffffffffu;
constexpr size_t kMostOpen = 4096;  // a lane that never comes must not keep the others' accesses forever

int lanes_per_pass(int bytes) { return std::min(kLanes, kBanks * kWordBytes / std::max(bytes, kWordBytes)); }

}  // namespace

void Counters::add(const Counters& other) {
  for (int i = 0; i < kInstructions; ++i) instructions[i] += other.instructions[i];
  matrix_flops += other.matrix_flops;
  bank_conflicts += other.bank_conflicts;
  global_bytes_read += other.global_bytes_read;
  global_bytes_written += other.global_bytes_written;
  global_sectors_read += other.global_sectors_read;
  global_sectors_written += other.global_sectors_written;
  barrier_waits += other.barrier_waits;
}

int sectors(const uint64_t* addresses, uint32_t lanes, int bytes) {
  uint64_t touched[2 * kLanes];  // an access of at most 16 bytes touches at most two
  int count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    const uint64_t first = addresses[lane] / kSectorBytes, last = (addresses[lane] + bytes - 1) / kSectorBytes;
    touched[count++] = first;
    if (last != first) touched[count++] = last;
  }
  std::sort(touched, touched + count);
  return static_cast<int>(std::unique(touched, touched + count) - touched);
}

int bank_passes(const uint64_t* addresses, uint32_t lanes, int bytes) {
  const int group = lanes_per_pass(bytes);
  int passes = 0;
  for (int first = 0; first < kLanes; first += group) {
    uint64_t words[kBanks][kLanes];
    int count[kBanks] = {}, most = 0;
    for (int lane = first; lane < first + group; ++lane) {
      if ((lanes >> lane & 1) == 0) continue;
      const uint64_t first_word = addresses[lane] / kWordBytes, last_word = (addresses[lane] + bytes - 1) / kWordBytes;
      for (uint64_t word = first_word; word <= last_word; ++word) {
        const int bank = static_cast<int>(word % kBanks);
        uint64_t* end = words[bank] + count[bank];
        if (std::find(words[bank], end, word) != end) continue;
        *end = word;
        most = std::max(most, ++count[bank]);
      }
    }
    passes += most;
  }
  return passes;
}

int fewest_bank_passes(uint32_t lanes, int bytes) {
  const int group = lanes_per_pass(bytes);
  const uint32_t mask = group == kLanes ? kEveryLane : (1u << group) - 1;
  int passes = 0;
  for (int first = 0; first < kLanes; first += group) passes += (lanes >> first & mask) != 0;
  return passes;
}

bool Accesses::executes(const void* place, int lane) {
  const tsan::Unseen unseen;
  return places_[reinterpret_cast<uintptr_t>(place) * 2].execute(lane);
}

void Accesses::Place::settle_first(Counters& counters, std::vector<Event>* events) {
  const Access& access = open.front();
  Event unrecorded;
  Event& event = events != nullptr && access.event < events->size() ? (*events)[access.event] : unrecorded;
  const int64_t all = int64_t{bytes} * __builtin_popcount(access.lanes);
  if (memory == Memory::kShared) {
    const int conflicts = bank_passes(access.addresses, access.lanes, bytes) - fewest_bank_passes(access.lanes, bytes);
    counters.bank_conflicts += conflicts;
    event.bank_conflicts += conflicts;
    event.bytes = std::max(event.bytes, all);
  } else {
    const int touched = sectors(access.addresses, access.lanes, bytes);
    (writes ? counters.global_bytes_written : counters.global_bytes_read) += all;
    (writes ? counters.global_sectors_written : counters.global_sectors_read) += touched;
    event.sectors += touched;
    event.bytes = std::max(event.bytes, all);
  }
  open.pop_front();
  ++first_open;
}

bool Accesses::access(const void* at, Memory memory, bool writes, int lane, uint64_t address, int bytes,
                      Counters& counters) {
  const tsan::Unseen unseen;
  // An asynchronous copy accesses both memories at one place.
  const uintptr_t key = reinterpret_cast<uintptr_t>(at) * 2 + (memory == Memory::kGlobal ? 1 : 0);
  Place& place = places_[key];
  place.memory = memory;
  place.writes = writes;
  place.bytes = bytes;
  const uint32_t number = place.executed[lane];
  const bool first = place.execute(lane);
  if (first) {
    place.open.emplace_back();
    if (events_ != nullptr) place.open.back().event = events_->size();
    if (place.open.size() > kMostOpen) place.settle_first(counters, events_);
  }
  if (number < place.first_open) {  // the others' has been settled without this lane
    place.open.emplace_front();
    place.open.front().add(lane, address);
    place.open.front().event = SIZE_MAX;  // long past
    place.settle_first(counters, events_);
    --place.first_open;
    return first;
  }
  Access& mine = place.open[number - place.first_open];
  mine.add(lane, address);
  event_ = mine.event;
  while (!place.open.empty() && place.open.front().came == kEveryLane) place.settle_first(counters, events_);
  return first;
}

void Accesses::settle(Counters& counters) {
  const tsan::Unseen unseen;
  for (auto& [key, place] : places_) {
    while (!place.open.empty()) place.settle_first(counters, events_);
  }
  places_.clear();
}

}  // namespace flagattn::host_exec
