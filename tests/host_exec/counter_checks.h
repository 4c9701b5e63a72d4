// What the runner counts, on accesses whose cost is known.
#pragma once

#include <cstdio>
#include <vector>

#include "arch/ptx/atomic.cuh"
#include "arch/ptx/barrier.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/launch.cuh"
#include "arch/ptx/matrix.cuh"
#include "arch/ptx/matrix_product.cuh"
#include "arch/ptx/warp.cuh"
#include "host_exec/host_exec.h"

namespace flagattn::counter_checks {

using host_exec::Counters;
using host_exec::Instruction;

struct Shared {
  alignas(1024) uint32_t words[8192];
};

struct Arguments {
  uint32_t* words;
  int stride;  // of lanes, in words
};

inline bool is(const char* what, int64_t got, int64_t expected) {
  if (got != expected)
    std::printf("%s: %lld, not %lld\n", what, static_cast<long long>(got), static_cast<long long>(expected));
  return got == expected;
}

inline Counters counters_of(void (*kernel)(const Arguments), int threads, const Arguments& arguments) {
  const Status status = ptx::launch<Shared>(kernel, 1, threads, {}, arguments);
  if (!status.ok()) std::printf("%s\n", status.message.c_str());
  return host_exec::counters();
}

inline bool global_sectors_are_counted() {
  alignas(128) static uint32_t words[32 * 64];
  const auto kernel = [](const Arguments a) {
    const int lane = ptx::thread_index();
    for (int round = 0; round < 3; ++round) {  // three instructions, of which the last is one of half the warp
      if (round == 2 && lane % 2 == 0) continue;
      ptx::store_global(a.words + lane * a.stride, ptx::load_global(a.words + lane * a.stride) + 1);
    }
  };
  bool right = true;
  for (const int stride : {1, 2, 8, 64}) {
    const Counters c = counters_of(kernel, 32, {words, stride});
    const int whole = stride >= 8 ? 32 : 4 * stride, half = stride >= 8 ? 16 : whole;
    right = is("instructions", c[Instruction::kGlobalLoad], 3) && is("stores", c[Instruction::kGlobalStore], 3) &&
            is("bytes", c.global_bytes_read, 4 * 80) && is("sectors read", c.global_sectors_read, 2 * whole + half) &&
            is("sectors written", c.global_sectors_written, 2 * whole + half) && right;
  }
  return right;
}

template <typename Value>
void store_strided(const Arguments a) {
  const int lane = ptx::thread_index();
  ptx::store_shared(ptx::shared_address(ptx::shared_storage<Shared>().words) + 4 * a.stride * lane, Value{});
}

inline void load_one_word(const Arguments a) {
  a.words[ptx::thread_index()] =
      ptx::load_shared<uint32_t>(ptx::shared_address(ptx::shared_storage<Shared>().words) + 4 * a.stride);
}

inline bool bank_conflicts_are_counted() {
  struct Case {
    void (*kernel)(const Arguments);
    int stride;
    int64_t conflicts;
  };
  // 32 lanes of 4 bytes take one pass, of 8 two, of 16 four; rows of 36 words are the usual padding.
  const Case cases[] = {
      {store_strided<uint32_t>, 1, 0},     {store_strided<uint32_t>, 2, 1},      {store_strided<uint32_t>, 32, 31},
      {store_strided<uint32_t>, 33, 0},    {store_strided<ptx::Bytes8>, 2, 0},   {store_strided<ptx::Bytes8>, 4, 2},
      {store_strided<ptx::Bytes16>, 4, 0}, {store_strided<ptx::Bytes16>, 36, 0}, {store_strided<ptx::Bytes16>, 32, 28}};
  static uint32_t out[32];
  bool right = is("broadcast", counters_of(load_one_word, 32, {out, 3}).bank_conflicts, 0);
  for (const Case& c : cases) {
    const Counters counters = counters_of(c.kernel, 32, {nullptr, c.stride});
    right = is("conflicts", counters.bank_conflicts, c.conflicts) &&
            is("stores", counters[Instruction::kSharedStore], 1) && right;
  }
  return right;
}

// Rows of 128 bytes without a swizzle: the eight rows of a matrix meet in one column of banks.
inline bool matrix_conflicts_are_counted() {
  const auto kernel = [](const Arguments a) {
    uint32_t matrices[4];
    const int lane = ptx::thread_index();
    const int chunk = a.stride != 0 ? lane / 8 ^ lane % 8 : lane / 8;
    ptx::ldmatrix_x4(matrices,
                     ptx::shared_address(ptx::shared_storage<Shared>().words) + 128 * (lane % 8) + 16 * chunk);
  };
  return is("without swizzle", counters_of(kernel, 32, {nullptr, 0}).bank_conflicts, 4 * 7) &&
         is("with swizzle", counters_of(kernel, 32, {nullptr, 1}).bank_conflicts, 0);
}

inline bool instructions_are_counted() {
  alignas(128) static uint32_t words[1024];
  const auto kernel = [](const Arguments a) {
    const int thread = ptx::thread_index(), lane = thread % 32;
    auto& shared = ptx::shared_storage<Shared>();
    ptx::cp_async_16(ptx::shared_address(shared.words) + 16 * thread, a.words + 4 * thread, thread < 80);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    ptx::sync_block();
    for (int i = 0; i < 5; ++i) {
      float d[4] = {};
      ptx::mma_m16n8k16<BFloat16>(d, {0, 0, 0, 0}, {0, 0});
    }
    if (lane == 0) ptx::atomic_add(a.words, 1u);
    static_cast<void>(ptx::shuffle_xor(lane, 1));
    static_cast<void>(ptx::ballot(true));
    if (thread < 64) {
      ptx::named_barrier_sync<1, 128>();
    } else {
      ptx::named_barrier_arrive<1, 128>();
    }
  };
  const Counters c = counters_of(kernel, 128, {words, 0});
  return is("copies", c[Instruction::kAsyncCopy], 4) && is("bytes", c.global_bytes_read, 80 * 16) &&
         is("sectors", c.global_sectors_read, 40) && is("products", c[Instruction::kMatrixProduct], 20) &&
         is("flops", c.matrix_flops, 20 * 4096) && is("atomics", c[Instruction::kAtomic], 4) &&
         is("shuffles", c[Instruction::kShuffle], 4) && is("votes", c[Instruction::kVote], 4) &&
         is("barriers", c[Instruction::kBarrier], 8) && is("waits", c.barrier_waits, 6) &&
         is("conflicts", c.bank_conflicts, 0);
}

}  // namespace flagattn::counter_checks
