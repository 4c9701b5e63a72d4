// Checks what the rotary kernels can do, plans, and picks the kernel.
#include "rotary/cuda/sm80/rotary.h"

#include <string>

#include "arch/ptx/launch.cuh"
#include "rotary/cuda/sm80/element_kernel.cuh"

namespace flagattn::sm80 {

template <>
Status launch_rotary<float>(const RotaryArguments&, Stream);
template <>
Status launch_rotary<BFloat16>(const RotaryArguments&, Stream);
template <>
Status launch_rotary<Float16>(const RotaryArguments&, Stream);

namespace {

struct Nothing {};

Status check(const RotaryParams& p) {
  if (p.num_positions == 0 && p.half_dim > 0) return Status::error("cos has no rows; every row of x needs one");
  if (p.heads * p.head_dim > cuda::kMostColumns) {
    return Status::error("x has " + std::to_string(p.heads) + " heads of " + std::to_string(p.head_dim) +
                         " channels; apply_rotary on CUDA supports at most 2^30 in a row");
  }
  if (p.num_positions > cuda::kMostColumns) {
    return Status::error("cos has " + std::to_string(p.num_positions) +
                         " rows; apply_rotary on CUDA supports at most 2^30");
  }
  return Status::success();
}

}  // namespace

Status run_rotary(const RotaryParams& p, Stream stream) {
  const int64_t rows = p.batch * p.seqlen;
  if (rows * p.heads * p.head_dim == 0) return Status::success();
  if (Status status = check(p); !status.ok()) return status;
  const bool by_vector = rotary_takes_vectors(p);
  const RotaryArguments arguments{p, rotary_plan(p, by_vector)};
  if (by_vector) return dispatch(p.dtype, [&]<typename T>(T) { return launch_rotary<T>(arguments, stream); });
  const int64_t blocks = (rows + arguments.plan.rows_per_block - 1) / arguments.plan.rows_per_block;
  return ptx::launch<Nothing>(rotary_element_kernel, blocks, kRotaryThreads, stream, arguments);
}

}  // namespace flagattn::sm80
