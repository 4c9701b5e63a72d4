// Attention forward, plain and piecewise, for one ISA level (docs/kernels/attention_cpu.md).
#include "arch/scratch.h"
#include "attention/cpu/forward.h"
#include "attention/cpu/isa.h"
#include "attention/cpu/vector_products.h"
#if defined(__AMX_BF16__)
#include "attention/cpu/tile_products.h"
#endif

namespace flagattn::FLAGATTN_ISA {
namespace {

template <typename Products>
void run_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows) {
  const ForwardSchedule schedule{cpu_forward_config(params, kPanel, parallel.num_threads), params.batch, params.heads_k,
                                 least_rows};
  ForwardScratch scratch;
  const size_t bytes = carve<Products>(params, schedule.config, nullptr, scratch);
  for_each_run_of_items(
      parallel, schedule.num_items(),
      [&] {
        ForwardScratch own;
        carve<Products>(params, schedule.config, static_cast<char*>(cpu::thread_scratch(bytes)), own);
        return ForwardWorker<Products>(params, schedule, own);
      },
      [](int64_t begin, int64_t end, ForwardWorker<Products>& worker) { worker.run(begin, end); });
}

}  // namespace

void attention_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows) {
#if defined(__AMX_BF16__)
  if (params.dtype == DType::kBFloat16) return run_forward<TileProducts>(params, parallel, least_rows);
#endif
  run_forward<VectorProducts>(params, parallel, least_rows);
}

int64_t attention_panel_columns() { return kPanel; }

}  // namespace flagattn::FLAGATTN_ISA
