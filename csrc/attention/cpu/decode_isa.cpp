// Decoding for one ISA level (docs/kernels/attention_decode_cpu.md).
#include "arch/scratch.h"
#include "attention/cpu/decode.h"
#include "attention/cpu/isa.h"
#if defined(__AMX_BF16__)
#include "attention/cpu/decode_tiles.h"
#endif

namespace flagattn::FLAGATTN_ISA {
namespace {

template <typename T>
void decode(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows) {
  DecodeSchedule schedule = decode_schedule(params, parallel.num_threads);
  schedule.most_rows = most_rows;
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  const DecodeSizes sizes(params, schedule, columns);
  const DecodeLayout layout(params, schedule, sizes, parallel.num_threads);
  // The caller's block, kept between calls, serves all workers.
  char* block = static_cast<char*>(cpu::thread_scratch(layout.total));
  const DecodeShared shared = layout.shared(block);
  if (schedule.split) {
    for (int64_t group = 0; group < schedule.batch * schedule.head_blocks(); ++group) {
      new (shared.missing + group) std::atomic<int64_t>(schedule.chunks);
    }
  }
  std::atomic<int64_t> workers{0};
  for_each_run_of_items(
      parallel, schedule.num_items(),
      [&] {
        const int64_t index = workers.fetch_add(1, std::memory_order_relaxed);
        return DecodeWorker<T>(params, schedule, sizes, shared, layout.worker(block, index, sizes));
      },
      [](int64_t begin, int64_t end, DecodeWorker<T>& worker) {
        for (int64_t item = begin; item < end; ++item) worker.run(item, item + 1 < end ? item + 1 : -1);
      });
}

}  // namespace

void attention_decode(const AttentionParams& params, const ParallelFor& parallel, int64_t most_rows) {
  dispatch(params.dtype, [&]<typename T>(T) { decode<T>(params, parallel, most_rows); });
}

}  // namespace flagattn::FLAGATTN_ISA
