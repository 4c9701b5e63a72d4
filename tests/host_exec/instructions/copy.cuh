// cp.async of every size, accesses of one thread, and named barriers between warps with different tasks.
#pragma once

#include "arch/ptx/barrier.cuh"
#include "arch/ptx/copy.cuh"
#include "tests/host_exec/instructions/check.cuh"

namespace flagattn::instructions {

struct CopyArguments {
  const uint32_t* source;
  uint32_t* out;
};

// Threads copy what their neighbours read; those past the end get zeros.
FLAGATTN_KERNEL(64, 1) async_copy_kernel(FLAGATTN_KERNEL_ARGUMENT CopyArguments arguments) {
  auto& shared = ptx::shared_storage<Shared>();
  const int thread = ptx::thread_index();
  const bool in_range = thread < 50;
  const ptx::SharedAddress words = ptx::shared_address(shared.words);
  ptx::cp_async_16(words + 16 * thread, arguments.source + 4 * thread, in_range);
  ptx::cp_async_commit();
  ptx::cp_async<8>(words + 2048 + 8 * thread, arguments.source + 2 * thread, in_range);
  ptx::cp_async<4>(words + 4096 + 4 * thread, arguments.source + thread, in_range);
  ptx::cp_async_commit();
  if (!planted(Fault::kMissingCopyWait)) ptx::cp_async_wait<1>();
  if (!planted(Fault::kMissingBarrier)) ptx::sync_block();
  const int other = 63 - thread;
  const auto four = ptx::load_shared<ptx::Bytes16>(words + 16 * other);
  ptx::store_global(&arguments.out[thread], four.words[3]);
  ptx::cp_async_wait<0>();
  ptx::sync_block();
  const auto two = ptx::load_shared<ptx::Bytes8>(words + 2048 + 8 * other);
  ptx::store_global(&arguments.out[64 + thread], two.words[1]);
  ptx::store_global(&arguments.out[128 + thread], ptx::load_shared<uint32_t>(words + 4096 + 4 * other));
}

inline bool async_copies() {
  Buffer<uint32_t> source(4 * 50), out(3 * 64);
  for (int i = 0; i < 4 * 50; ++i) source.data[i] = static_cast<uint32_t>(7 * i + 1);
  if (!run(async_copy_kernel, 1, 64, {source.device(), out.device()})) return false;
  out.fetch();
  return equal("copies", out.data, [](int i) {
    const int other = 63 - i % 64, size = 4 >> (i / 64);
    return static_cast<uint32_t>(other < 50 ? 7 * (size * other + size - 1) + 1 : 0);
  });
}

// Warp 0 fills, warps 1 and 2 read, through barriers of 96 threads at which one side only arrives.
FLAGATTN_KERNEL(96, 1) hand_over_kernel(FLAGATTN_KERNEL_ARGUMENT CopyArguments arguments) {
  auto& shared = ptx::shared_storage<Shared>();
  const int thread = ptx::thread_index();
  for (uint32_t round = 0; round < 4; ++round) {
    if (thread < 32) {
      shared.words[thread] = 100 * round + thread;
      ptx::named_barrier_arrive<1, 96>();
      ptx::named_barrier_sync<2, 96>();
    } else {
      if (!planted(Fault::kMissingBarrier)) ptx::named_barrier_sync<1, 96>();
      if (planted(Fault::kMissingBarrier)) ptx::named_barrier_arrive<1, 96>();
      arguments.out[(thread - 32) * 4 + round] = shared.words[(thread + 1) % 32];
      ptx::named_barrier_arrive<2, 96>();
    }
  }
}

inline bool named_barriers() {
  Buffer<uint32_t> out(64 * 4);
  if (!run(hand_over_kernel, 1, 96, {nullptr, out.device()})) return false;
  out.fetch();
  return equal("named barriers", out.data,
               [](int i) { return static_cast<uint32_t>(100 * (i % 4) + (i / 4 + 1) % 32); });
}

inline const std::vector<Check> kCopyChecks = {{"async_copies", async_copies}, {"named_barriers", named_barriers}};

}  // namespace flagattn::instructions
