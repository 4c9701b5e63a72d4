// The threads that work on one row together: who they are, and sums over them.
#pragma once

#include "arch/cuda/row_plan.h"
#include "arch/cuda/vector.cuh"
#include "arch/ptx/barrier.cuh"
#include "arch/ptx/warp.cuh"

namespace flagattn::cuda {

// What the warps of a team tell each other. Each use needs one of its own, or a barrier since the last but one.
struct TeamExchange {
  float of_warp[ptx::kWarpSize];
};

struct RowTeam {
  int lane;
  int lanes;
  int64_t index;  // of all teams

  FLAGATTN_DEVICE explicit RowTeam(const RowPlan& plan)
      : lane(ptx::thread_index() % plan.lanes),
        lanes(plan.lanes),
        index(int64_t{ptx::block_index()} * plan.teams + ptx::thread_index() / plan.lanes) {}

  // The first column of this thread's n-th vector: neighbouring threads read neighbouring vectors.
  template <typename T>
  FLAGATTN_DEVICE int column(int n) const {
    return (n * lanes + lane) * kVector<T>;
  }
  template <typename T>
  FLAGATTN_DEVICE int columns_per_step() const {
    return lanes * kVector<T>;
  }

  // `value` joined over all threads of the team, in an order that the team's size alone decides; every thread of the
  // block calls this. `nothing` is what joining does not change.
  template <typename Join>
  FLAGATTN_DEVICE float joined(float value, float nothing, TeamExchange& exchange, Join join) const {
    const int width = lanes < ptx::kWarpSize ? lanes : ptx::kWarpSize;
    for (int distance = width / 2; distance > 0; distance /= 2) value = join(value, ptx::shuffle_xor(value, distance));
    if (lanes <= ptx::kWarpSize) return value;
    const ptx::SharedAddress slots = ptx::shared_address(exchange.of_warp);
    const int warp = lane / ptx::kWarpSize, place = lane % ptx::kWarpSize;
    if (place == 0) ptx::store_shared(slots + 4 * warp, value);
    if (!planted(Fault::kMissingBarrier)) ptx::sync_block();
    value = place < lanes / ptx::kWarpSize ? ptx::load_shared<float>(slots + 4 * place) : nothing;
    for (int distance = ptx::kWarpSize / 2; distance > 0; distance /= 2) {
      value = join(value, ptx::shuffle_xor(value, distance));
    }
    return value;
  }

  FLAGATTN_DEVICE float sum(float value, TeamExchange& exchange) const {
    return joined(value, 0.0f, exchange, [](float a, float b) { return a + b; });
  }
  FLAGATTN_DEVICE float max(float value, TeamExchange& exchange) const {
    return joined(value, -INFINITY, exchange, [](float a, float b) { return fmaxf(a, b); });
  }
};

}  // namespace flagattn::cuda
