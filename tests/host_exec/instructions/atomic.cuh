// Atomic operations, and blocks that wait for each other.
#pragma once

#include "arch/ptx/atomic.cuh"
#include "arch/ptx/barrier.cuh"
#include "tests/host_exec/instructions/check.cuh"

namespace flagattn::instructions {

struct AtomicArguments {
  uint32_t* words;
  float* floats;
  uint64_t* wide;
  int32_t* signed_words;
};

FLAGATTN_KERNEL(64, 1) atomic_kernel(FLAGATTN_KERNEL_ARGUMENT AtomicArguments arguments) {
  const int i = ptx::thread_index() + 64 * ptx::block_index();
  const auto value = static_cast<uint32_t>(i);
  ptx::atomic_add(&arguments.words[0], value);
  ptx::atomic_max(&arguments.words[1], value * 7 % 256);
  ptx::atomic_min(&arguments.words[2], 1000 - value);
  ptx::atomic_or(&arguments.words[3], 1u << (i % 20));
  ptx::atomic_and(&arguments.words[4], ~(1u << (i % 20)));
  ptx::reduce_add(&arguments.words[5], 2 * value);
  // Every thread takes a number of its own and puts itself there.
  const uint32_t ticket = ptx::atomic_add(&arguments.words[6], 1u);
  ptx::atomic_exchange(&arguments.words[64 + ticket], value);
  // A counter built from compare-and-exchange, and one of four steps.
  uint32_t seen = 0;
  for (uint32_t old = ~0u; seen != old;) {
    old = seen;
    seen = ptx::atomic_compare_exchange(&arguments.words[7], old, old + 1);
  }
  ptx::atomic_add(&arguments.floats[0], 0.5f);
  ptx::reduce_add(&arguments.floats[1], 0.25f);
  ptx::reduce_add(&arguments.wide[0], uint64_t{1} << 33);
  ptx::atomic_add(&arguments.wide[1], uint64_t{3});
  ptx::atomic_min(&arguments.signed_words[0], -i);
  ptx::atomic_add(&arguments.signed_words[1], -1);
}

inline bool atomics() {
  constexpr int kThreads = 4 * 64;
  Buffer<uint32_t> words(64 + kThreads);
  words.data[2] = ~0u;
  words.data[4] = ~0u;
  Buffer<float> floats(2);
  Buffer<uint64_t> wide(2);
  Buffer<int32_t> signed_words(2);
  const AtomicArguments arguments{words.device(), floats.device(), wide.device(), signed_words.device()};
  if (!run(atomic_kernel, 4, 64, arguments)) return false;
  words.fetch();
  floats.fetch();
  wide.fetch();
  signed_words.fetch();
  std::vector<bool> present(kThreads);
  for (int i = 0; i < kThreads; ++i) present[words.data[64 + i] % kThreads] = true;
  words.data.resize(8);
  const uint32_t sum = kThreads * (kThreads - 1) / 2, bits = (1u << 20) - 1;
  const uint32_t expected[] = {sum, 255, 1000 - kThreads + 1, bits, ~bits, 2 * sum, kThreads, kThreads};
  return equal("words", words.data, [&](int i) { return expected[i]; }) &&
         equal("tickets", present, [](int) { return true; }) &&
         equal("floats", floats.data, [](int i) { return kThreads * (i == 0 ? 0.5f : 0.25f); }) &&
         equal("wide", wide.data, [](int i) { return uint64_t{kThreads} * (i == 0 ? uint64_t{1} << 33 : 3); }) &&
         equal("signed", signed_words.data, [](int i) { return i == 0 ? -(kThreads - 1) : -kThreads; });
}

struct BlocksArguments {
  uint32_t* out;
  uint32_t* counters;  // [0] in order, [1 + i] of pair i
  int blocks;
};

// Every block adds to what the ones before it have left, in the order of their indices: 2 * sum + index.
FLAGATTN_KERNEL(64, 1) in_order_kernel(FLAGATTN_KERNEL_ARGUMENT BlocksArguments arguments) {
  const int block = ptx::block_index(), thread = ptx::thread_index();
  if (thread == 0 && !planted(Fault::kMissingGlobalWait))
    ptx::global_wait(&arguments.counters[0], static_cast<uint32_t>(block));
  ptx::sync_block();
  arguments.out[thread] = 2 * arguments.out[thread] + static_cast<uint32_t>(block);
  if (!planted(Fault::kUnorderedSignal)) ptx::sync_block();
  if (thread == 0 && !(planted(Fault::kMissingSignal) && block == 3)) ptx::signal(&arguments.counters[0]);
}

// In pairs: the first writes, the second answers, the first reads the answer. Neither can end alone.
FLAGATTN_KERNEL(32, 1) pairs_kernel(FLAGATTN_KERNEL_ARGUMENT BlocksArguments arguments) {
  const int pair = ptx::block_index() % (arguments.blocks / 2), thread = ptx::thread_index();
  const bool first = ptx::block_index() >= arguments.blocks / 2;
  uint32_t* counter = &arguments.counters[1 + pair];
  uint32_t* out = &arguments.out[64 * pair + thread];
  if (first) {
    out[0] = static_cast<uint32_t>(100 * pair + thread);
    ptx::signal(counter);
    ptx::global_wait(counter, 64);  // 32 threads of each
    out[0] += out[32];
  } else {
    ptx::global_wait(counter, 32);
    out[32] = 2 * out[0];
    ptx::signal(counter);
  }
}

template <typename Expected>
bool blocks_agree(void (*kernel)(const BlocksArguments), int blocks, int threads, const Expected& expected) {
  Buffer<uint32_t> out(64 * blocks), counters(1 + blocks);
  if (!run(kernel, blocks, threads, {out.device(), counters.device(), blocks})) return false;
  out.fetch();
  return equal("blocks", out.data, expected);
}

inline bool blocks_in_order() {
  return blocks_agree(in_order_kernel, 6, 64, [](int i) { return i < 64 ? 57u : 0u; });
}
inline bool blocks_in_pairs() {
  return blocks_agree(pairs_kernel, 8, 32, [](int i) {
    const int pair = i / 64, value = 100 * pair + i % 32;
    return static_cast<uint32_t>(pair >= 4 ? 0 : i % 64 < 32 ? 3 * value : 2 * value);
  });
}

inline const std::vector<Check> kAtomicChecks = {
    {"atomics", atomics}, {"blocks_in_order", blocks_in_order}, {"blocks_in_pairs", blocks_in_pairs}};

}  // namespace flagattn::instructions
