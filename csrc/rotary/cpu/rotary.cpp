#include "rotary/cpu/rotary.h"

#include <algorithm>
#include <memory>

#include "arch/cpu_level.h"
#include "arch/streaming.h"
#include "rotary/cpu/rotary_isa.h"
#include "rotary/positions.h"

namespace flagattn::cpu {
namespace {

const RotaryKernels& kernels_of(CpuLevel level) {
  switch (without_tiles(level)) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::rotary_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::rotary_kernels;
#endif
    default:
      return scalar::rotary_kernels;
  }
}

}  // namespace

Status run_rotary(const RotaryParams& params, const ParallelFor& parallel) {
  if (Status status = check_positions(params); !status.ok()) return status;
  const RotaryKernels& kernels = kernels_of(cpu_level().level);
  const int64_t rows = params.batch * params.seqlen;
  const int64_t row_size = std::max<int64_t>(1, params.heads * params.head_dim);
  const int64_t rows_per_item = std::max<int64_t>(1, elements_per_item(rows * row_size, parallel) / row_size);
  const bool in_place = params.x.data == params.y.data;  // its lines are in the cache, having just been read
  const bool stream = !in_place && streams(rows * row_size * size_of(params.dtype));
  for_each_item(
      parallel, (rows + rows_per_item - 1) / rows_per_item,
      [&] { return std::unique_ptr<float[]>(new float[rotary_scratch_size(params)]); },
      [&](int64_t item, std::unique_ptr<float[]>& scratch) {
        const int64_t end = std::min(rows, (item + 1) * rows_per_item);
        for (int64_t row = item * rows_per_item; row < end; ++row) {
          const int64_t b = row / params.seqlen, s = row % params.seqlen;
          kernels.rotate_row(params, b, s, params.position_of(b, s), scratch.get(), stream);
        }
        if (stream) kernels.fence();
      });
  return Status::success();
}

}  // namespace flagattn::cpu
