// Attention forward, plain and piecewise, for one ISA level (docs/kernels/attention_cpu.md).
#include "attention/cpu/forward.h"
#include "attention/cpu/isa.h"
#include "attention/cpu/scratch.h"

namespace flagattn::FLAGATTN_ISA {

void attention_forward(const AttentionParams& params, const ParallelFor& parallel) {
  const ForwardSchedule schedule{cpu_forward_config(params, kPanel, parallel.num_threads), params.batch,
                                 params.heads_k};
  const ForwardLayout layout = forward_layout(params, schedule.config.columns_per_item / kPanel);
  for_each_item(
      parallel, schedule.num_items(),
      [&] { return ForwardWorker(params, schedule, carve(layout, cpu::thread_scratch(layout.total))); },
      [](int64_t item, ForwardWorker& worker) { worker.run(item); });
}

int64_t attention_panel_columns() { return kPanel; }

}  // namespace flagattn::FLAGATTN_ISA
