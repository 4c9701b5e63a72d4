// Attention forward, plain and piecewise, for one ISA level (docs/kernels/attention_cpu.md).
#include "arch/scratch.h"
#include "attention/cpu/forward.h"
#include "attention/cpu/isa.h"

namespace flagattn::FLAGATTN_ISA {

void attention_forward(const AttentionParams& params, const ParallelFor& parallel, int64_t least_rows) {
  const ForwardSchedule schedule{cpu_forward_config(params, kPanel, parallel.num_threads), params.batch, params.heads_k,
                                 least_rows};
  ForwardScratch scratch;
  const size_t bytes = carve(params, schedule.config, nullptr, scratch);
  for_each_run_of_items(
      parallel, schedule.num_items(),
      [&] {
        ForwardScratch own;
        carve(params, schedule.config, static_cast<char*>(cpu::thread_scratch(bytes)), own);
        return ForwardWorker(params, schedule, own);
      },
      [](int64_t begin, int64_t end, ForwardWorker& worker) { worker.run(begin, end); });
}

int64_t attention_panel_columns() { return kPanel; }

}  // namespace flagattn::FLAGATTN_ISA
