// Warp collectives: every lane's call is a rendezvous.
#include <cstring>

#include "host_exec/machine.h"

namespace flagattn::host_exec {

void collective(const char* name, void* argument, void (*execute)(void** arguments)) {
  Warp& warp = *self->warp;
  if (warp.alive != kAllLanes) fail("%s is executed after lanes of the warp have returned", name);
  if (warp.arrived != 0 && std::strcmp(warp.collective, name) != 0) {
    fail("the warp diverges: this lane is at %s, others are at %s", name, warp.collective);
  }
  warp.collective = name;
  warp.arguments[self->lane] = argument;
  warp.arrived |= 1u << self->lane;
  if (warp.arrived != kAllLanes) return wait_at(name);
  execute(warp.arguments);
  warp.arrived = 0;
  wake(warp, kAllLanes);
  may_yield();
}

uint32_t shuffle_xor(uint32_t value, int lane_mask) {
  struct Call {
    uint32_t value;
    int lane_mask;
    uint32_t result;
  } call{value, lane_mask, 0};
  if (lane_mask < 0 || lane_mask >= kWarpSize) fail("shuffle_xor: lane mask %d is outside [0, 32)", lane_mask);
  collective("shfl.sync", &call, [](void** arguments) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      auto& mine = *static_cast<Call*>(arguments[lane]);
      mine.result = static_cast<Call*>(arguments[lane ^ mine.lane_mask])->value;
    }
  });
  return call.result;
}

void sync_warp() {
  FLAGATTN_HOST_EXEC_FRAME;
  Warp& warp = *self->warp;
  tsan::Token& token = machine->tokens->warp[warp.index][warp.syncs[self->lane]++ % 2];
  tsan::release(token);
  collective("bar.warp.sync", nullptr, [](void**) {});
  tsan::acquire(token);
}

}  // namespace flagattn::host_exec
