// The kernels' threads are torch's: as many as torch.set_num_threads allows, from the pool that aten uses itself.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

#include "arch/parallel.h"
#include "torch/forked.h"

namespace flagattn {

// torch splits the workers evenly over its threads; inside a parallel region of somebody else it runs them one by one.
// No exception crosses torch's frames: the first one is kept and thrown again on the calling thread. A forked child has
// one worker.
inline ParallelFor torch_threads() {
  const auto run = [](int64_t num_workers, ParallelFor::Body body, void* closure) {
    if (num_workers == 1) return body(closure, 0);
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr failure;
    torch::stable::parallel_for(0, num_workers, 1, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t worker = begin; worker < end; ++worker) body(closure, worker);
      } catch (...) {
        if (!failed.test_and_set()) failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
  };
  return {run, in_forked_child() ? 1 : static_cast<int64_t>(torch::stable::get_num_threads())};
}

}  // namespace flagattn
