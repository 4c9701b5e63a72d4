// The gradient of every head's sink: the sum of its rows' shares, in an order that depends on their places alone.
#include "arch/ptx/barrier.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/launch.cuh"
#include "arch/ptx/shared_memory.cuh"
#include "attention/cuda/sm80/sequence_rows.cuh"

namespace flagattn::sm80 {

namespace {

constexpr int kSinkThreads = 256;

struct SinkShared {
  float sums[kSinkThreads];
};

// One block per query head.
FLAGATTN_KERNEL(kSinkThreads, 1)
attention_sink_gradient_kernel(FLAGATTN_KERNEL_ARGUMENT AttentionBackwardParams params) {
  const AttentionParams& p = params.forward;
  const RowsView& shares = params.dsink_shares;
  auto& shared = ptx::shared_storage<SinkShared>();
  const ptx::SharedAddress sums = ptx::shared_address(&shared.sums);
  const int thread = ptx::thread_index();
  const float* head = shares.data + ptx::block_index() * shares.head_stride;
  float sum = 0.0f;
  for (int sequence = 0; sequence < p.batch; ++sequence) {
    const SequenceRows rows = sequence_rows(p.cu_seqlens_q, sequence, p.seqlen_q, p.total_q);
    const float* first = head + (p.is_packed() ? rows.first : sequence * shares.batch_stride);
    for (int row = thread; row < rows.length; row += kSinkThreads) sum += ptx::load_global(first + row);
  }
  for (int half = kSinkThreads / 2; half > 0; half /= 2) {
    ptx::store_shared(sums + thread * 4, sum);
    ptx::sync_block();
    if (thread < half) sum += ptx::load_shared<float>(sums + (thread + half) * 4);
    ptx::sync_block();
  }
  if (thread == 0) ptx::store_global(params.dsinks + ptx::block_index(), sum);
}

}  // namespace

Status launch_sink_gradient(const AttentionBackwardParams& params, Stream stream) {
  return ptx::launch<SinkShared>(attention_sink_gradient_kernel, params.forward.heads_q, kSinkThreads, stream, params);
}

}  // namespace flagattn::sm80
