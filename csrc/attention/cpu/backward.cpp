// Runs the parts of the attention backward on the caller's threads and sums their shares of dK and dV in index order.
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "arch/cpu_level.h"
#include "arch/scratch.h"
#include "attention/cpu/attention.h"
#include "attention/cpu/backward_kernels.h"

namespace flagattn::cpu {
namespace {

const BackwardKernels& kernels_of(CpuLevel level) {
  switch (level) {
#if defined(FLAGATTN_HAS_AMX)
    case CpuLevel::kAmx:
      return amx::backward_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::backward_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::backward_kernels;
#endif
    default:
      return scalar::backward_kernels;
  }
}

// Memory of one KeyGradients, for the longest sequence of the batch.
class Share {
 public:
  Share(const AttentionParams& params, int64_t most_keys) {
    const int64_t rows = round_up_to(most_keys, kBackwardKeyTile);
    const int64_t keys = rows * round_up_to(params.head_dim, KeyGradients::kRowQuantum);
    const int64_t values = rows * round_up_to(params.head_dim_v, KeyGradients::kRowQuantum);
    const int64_t floats = values + (params.is_piecewise() ? 2 : 1) * keys;
    touched_.resize(static_cast<size_t>(rows / kBackwardKeyTile));
    data_ = static_cast<float*>(
        ::operator new(static_cast<size_t>(floats) * sizeof(float), std::align_val_t{kScratchAlignment}));
    view_ = {data_, data_ + values, params.is_piecewise() ? data_ + values + keys : nullptr, touched_.data()};
  }
  ~Share() { ::operator delete(data_, std::align_val_t{kScratchAlignment}); }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  const KeyGradients& view() const { return view_; }
  void clear() { touched_.assign(touched_.size(), 0); }

 private:
  float* data_;
  std::vector<uint8_t> touched_;
  KeyGradients view_;
};

// All parts whose shares make up dK and dV of one (sequence, key/value head).
struct Chain {
  Sequence sequence;
  int64_t head_k;
  int64_t sequence_index;
  BackwardSplit split;
  std::vector<Share*> finished;  // by part; null: not finished, or already summed
  int64_t num_summed = 0;
  Share* sum = nullptr;
  bool summing = false;  // by one thread at a time
};

// Hands out parts in order, each with a share to fill. Shares that can't be summed yet wait for the part before them;
// only so many exist, and who finds none free waits. The first unfinished part always has one, so there is always
// progress.
class Driver {
 public:
  Driver(const AttentionBackwardParams& params, const ParallelFor& parallel)
      : params_(params),
        kernels_(kernels_of(cpu_level().level)),
        group_(params.forward.heads_q / params.forward.heads_k),
        most_shares_(2 * parallel.num_threads + 1) {
    for (int64_t index = 0; index < params.forward.batch; ++index) {
      const Sequence sequence = sequence_of(params.forward, index);
      const BackwardSplit split = backward_split(sequence.seqlen_q, group_);
      if (sequence.seqlen_k > most_keys_) most_keys_ = sequence.seqlen_k;
      for (int64_t head = 0; head < params.forward.heads_k; ++head) {
        chains_.push_back({sequence, head, index, split, std::vector<Share*>(static_cast<size_t>(split.parts))});
        num_parts_ += split.parts;
      }
    }
  }

  int64_t num_parts() const { return num_parts_; }

  void work() {
    void* scratch = thread_scratch(kernels_.scratch_bytes(params_));
    kernels_.start(params_, scratch);
    std::unique_lock lock(mutex_);
    while (true) {
      share_freed_.wait(lock, [this] { return failed_ || next_chain_ == chains_.size() || can_get_share(); });
      if (failed_ || next_chain_ == chains_.size()) return;
      Chain& chain = chains_[next_chain_];
      const int64_t index = next_part_++;
      if (next_part_ == chain.split.parts) ++next_chain_, next_part_ = 0;
      try {
        Share* share = get_share();
        lock.unlock();
        BackwardPart part = backward_part(chain.sequence, chain.head_k, group_, chain.split, index);
        part.sequence_index = chain.sequence_index;
        share->clear();
        if (part.num_columns > 0) kernels_.run_part(params_, part, scratch, share->view());
        lock.lock();
        chain.finished[static_cast<size_t>(index)] = share;
        sum_finished(chain, part, lock);
      } catch (...) {  // no memory: the others must not wait for this part
        if (!lock.owns_lock()) lock.lock();
        failed_ = true;
        share_freed_.notify_all();
        throw;
      }
    }
  }

 private:
  bool can_get_share() const { return !free_.empty() || static_cast<int64_t>(shares_.size()) < most_shares_; }
  Share* get_share() {
    if (free_.empty()) {
      shares_.push_back(std::make_unique<Share>(params_.forward, most_keys_));
      return shares_.back().get();
    }
    Share* share = free_.back();
    free_.pop_back();
    return share;
  }
  void free_share(Share* share) {
    free_.push_back(share);
    share_freed_.notify_all();
  }

  // Sums what has become summable, without the lock; a thread that finds another at it leaves its share there.
  void sum_finished(Chain& chain, const BackwardPart& part, std::unique_lock<std::mutex>& lock) {
    if (chain.summing) return;
    chain.summing = true;
    while (chain.num_summed < chain.split.parts) {
      Share* share = chain.finished[static_cast<size_t>(chain.num_summed)];
      if (share == nullptr) break;
      lock.unlock();
      if (chain.sum == nullptr) {
        chain.sum = share;
        share = nullptr;
      } else {
        kernels_.add_share(params_, part, share->view(), chain.sum->view());
      }
      const bool last = chain.num_summed + 1 == chain.split.parts;
      if (last) kernels_.write(params_, part, chain.sum->view());
      lock.lock();
      if (share != nullptr) free_share(share);
      if (last) free_share(chain.sum);
      ++chain.num_summed;
    }
    chain.summing = false;
  }

  const AttentionBackwardParams& params_;
  const BackwardKernels& kernels_;
  const int64_t group_;
  const int64_t most_shares_;
  int64_t most_keys_ = 0;
  int64_t num_parts_ = 0;

  std::mutex mutex_;
  std::condition_variable share_freed_;
  std::vector<Chain> chains_;
  size_t next_chain_ = 0;
  int64_t next_part_ = 0;
  std::vector<std::unique_ptr<Share>> shares_;
  std::vector<Share*> free_;
  bool failed_ = false;
};

// Every head's sum of its rows' shares, in their order.
void sum_sink_shares(const AttentionBackwardParams& params) {
  const AttentionParams& forward = params.forward;
  for (int64_t head = 0; head < forward.heads_q; ++head) {
    double sum = 0.0;
    for (int64_t index = 0; index < forward.batch; ++index) {
      const Sequence sequence = sequence_of(forward, index);
      const RowsView& shares = params.dsink_shares;
      const float* rows = shares.data + sequence.batch * shares.batch_stride + head * shares.head_stride;
      for (int64_t row = 0; row < sequence.seqlen_q; ++row) sum += rows[sequence.first_q + row];
    }
    params.dsinks[head] = static_cast<float>(sum);
  }
}

}  // namespace

Status run_attention_backward(const AttentionBackwardParams& params, const ParallelFor& parallel) {
  if (params.forward.heads_k == 0) return Status::success();
  Driver driver(params, parallel);
  const int64_t parts = driver.num_parts();
  const int64_t workers = parts < parallel.num_threads ? parts : parallel.num_threads;
  if (workers > 0) {
    parallel.run(workers, [](void* opaque, int64_t) { static_cast<Driver*>(opaque)->work(); }, &driver);
  }
  if (params.forward.sinks != nullptr) sum_sink_shares(params);
  return Status::success();
}

}  // namespace flagattn::cpu
