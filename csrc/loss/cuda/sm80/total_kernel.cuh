// The sums over rows, by one block in an order that the number of rows alone decides.
#pragma once

#include "loss/cuda/sm80/rows.cuh"

namespace flagattn::sm80 {

FLAGATTN_KERNEL(kTotalThreads, 1)
loss_total_kernel(FLAGATTN_KERNEL_ARGUMENT LossTotalArguments arguments) {
  auto& shared = ptx::shared_storage<LossTotalShared>();
  const int thread = ptx::thread_index();
  const bool is_mean = arguments.in.options.reduction == Reduction::kMean;
  double sums[3] = {};
  for (int64_t row = thread; row < arguments.in.rows; row += kTotalThreads) {
    if (arguments.losses != nullptr) sums[0] += ptx::load_global(arguments.losses + row);
    if (!is_mean) continue;
    const LossRow own(arguments.in, row);
    sums[1] += own.is_kept ? own.weight : 0.0f;
    sums[2] += own.is_kept;
  }
  for (int which = 0; which < 3; ++which) {
    ptx::store_shared(ptx::shared_address(&shared.sums[which][thread]), sums[which]);
  }
  for (int distance = kTotalThreads / 2; distance > 0; distance /= 2) {
    if (!planted(Fault::kMissingBarrier)) ptx::sync_block();
    if (thread >= distance) continue;
    for (int which = 0; which < 3; ++which) {
      const auto own = ptx::shared_address(&shared.sums[which][thread]);
      const auto other = ptx::shared_address(&shared.sums[which][thread + distance]);
      ptx::store_shared(own, ptx::load_shared<double>(own) + ptx::load_shared<double>(other));
    }
  }
  if (thread != 0) return;
  const auto total = [&](int which) { return ptx::load_shared<double>(ptx::shared_address(&shared.sums[which][0])); };
  const double divisor = is_mean && total(2) != 0.0 ? total(1) : 1.0;
  if (arguments.loss != nullptr) ptx::store_global(arguments.loss, static_cast<float>(total(0) / divisor));
  if (arguments.divisor != nullptr) ptx::store_global(arguments.divisor, divisor);
}

}  // namespace flagattn::sm80
