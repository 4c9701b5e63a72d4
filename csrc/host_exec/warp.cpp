// Warp collectives: every lane's call is a rendezvous with the other lanes of its mask.
#include <cstring>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

// Two meetings each of which waits for a lane that is at the other will never end.
bool exclude_each_other(const Meeting& a, const Meeting& b) {
  return (a.mask & b.arrived) != 0 && (b.mask & a.arrived) != 0;
}

bool is_same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

Meeting& join(Warp& warp, const char* name, uint32_t mask) {
  const uint32_t me = 1u << self->lane;
  if ((mask & me) == 0) fail("%s with the mask 0x%08x, which lacks the lane that calls", name, mask);
  if ((mask & ~warp.alive) != 0) fail("%s is executed after lanes of the warp have returned", name);
  Meeting* mine = nullptr;
  for (uint32_t left = warp.open; left != 0 && mine == nullptr; left &= left - 1) {
    Meeting& meeting = warp.meetings[__builtin_ctz(left)];
    if (meeting.mask == mask && (meeting.arrived & me) == 0 && is_same(meeting.name, name)) mine = &meeting;
  }
  if (mine == nullptr) {  // at most one meeting per lane is open, and this lane is at none
    const int free = __builtin_ctz(~warp.open);
    warp.open |= 1u << free;
    mine = &warp.meetings[free];
    mine->name = name;
    mine->mask = mask;
    mine->arrived = 0;
    mine->token = &machine->tokens->warp[warp.index][warp.meetings_so_far++ % kWarpTokens];
  }
  mine->arrived |= me;
  for (uint32_t left = warp.open; left != 0; left &= left - 1) {
    const Meeting& other = warp.meetings[__builtin_ctz(left)];
    if (&other == mine || !exclude_each_other(*mine, other)) continue;
    if (!is_same(name, other.name)) {
      fail("the warp diverges: this lane is at %s, others are at %s", name, other.name);
    }
    fail("lanes of one %s give the masks 0x%08x and 0x%08x", name, mask, other.mask);
  }
  return *mine;
}

}  // namespace

void collective(const char* name, uint32_t mask, void* argument, bool orders_memory, void (*execute)(const Meeting&)) {
  Warp& warp = *self->warp;
  Meeting& meeting = join(warp, name, mask);
  tsan::Token& token = *meeting.token;
  if (orders_memory) tsan::release(token);
  meeting.arguments[self->lane] = argument;
  if (meeting.arrived != mask) {
    wait_at(name);
  } else {
    execute(meeting);
    meeting.mask = 0;
    warp.open &= ~(1u << (&meeting - warp.meetings));
    wake(warp, mask);
    may_yield();
  }
  if (orders_memory) tsan::acquire(token);
}

namespace {

struct ShuffleCall {
  Shuffle kind;
  uint32_t value;
  int lane;
  int width;
  uint32_t result;
};

// As the manual of shfl.sync has it: a lane whose source lies outside its segment reads itself.
int source_lane(const ShuffleCall& call, int lane) {
  const int first = lane & ~(call.width - 1), last = first + call.width - 1;
  int source = lane;
  switch (call.kind) {
    case Shuffle::kIndex:
      return first + (call.lane & (call.width - 1));
    case Shuffle::kUp:
      source = lane - call.lane;
      return source >= first ? source : lane;
    case Shuffle::kDown:
      source = lane + call.lane;
      return source <= last ? source : lane;
    case Shuffle::kXor:
      source = lane ^ call.lane;
      return source <= last ? source : lane;
  }
  return lane;
}

}  // namespace

uint32_t shuffle(Shuffle kind, uint32_t value, int lane, uint32_t mask, int width) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) fail("shfl.sync: the width %d", width);
  if (lane < 0 || lane >= kWarpSize) fail("shfl.sync: the lane, distance or lane mask %d", lane);
  ShuffleCall call{kind, value, lane, width, 0};
  const int source = source_lane(call, self->lane);
  if ((mask >> source & 1) == 0) fail("shfl.sync reads lane %d, which the mask 0x%08x lacks", source, mask);
  collective("shfl.sync", mask, &call, false, [](const Meeting& m) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((m.mask >> lane & 1) == 0) continue;
      auto& mine = m.of<ShuffleCall>(lane);
      mine.result = m.of<ShuffleCall>(source_lane(mine, lane)).value;
    }
    count(Instruction::kShuffle);
  });
  return call.result;
}

uint32_t ballot(bool predicate, uint32_t mask) {
  struct Call {
    bool predicate;
    uint32_t result;
  } call{predicate, 0};
  collective("vote.sync", mask, &call, false, [](const Meeting& m) {
    uint32_t votes = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((m.mask >> lane & 1) != 0 && m.of<Call>(lane).predicate) votes |= 1u << lane;
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((m.mask >> lane & 1) != 0) m.of<Call>(lane).result = votes;
    }
    count(Instruction::kVote);
  });
  return call.result;
}

bool elect_one(uint32_t mask) {
  collective("elect.sync", mask, nullptr, false, [](const Meeting&) { count(Instruction::kVote); });
  return self->lane == __builtin_ctz(mask);
}

void sync_warp(uint32_t mask) {
  FLAGATTN_HOST_EXEC_FRAME;
  collective("bar.warp.sync", mask, nullptr, true, [](const Meeting&) { count(Instruction::kBarrier); });
}

}  // namespace flagattn::host_exec
