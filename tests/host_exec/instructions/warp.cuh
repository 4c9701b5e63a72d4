// Shuffles, votes and syncs of a warp, with whole and partial masks.
#pragma once

#include "arch/ptx/warp.cuh"
#include "tests/host_exec/instructions/check.cuh"

namespace flagattn::instructions {

struct WordsArguments {
  uint32_t* out;  // a row of 32 per question
};

FLAGATTN_KERNEL(32, 1) shuffle_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  const int lane = ptx::thread_index();
  const uint32_t value = 100u + lane;
  uint32_t* out = arguments.out + lane;
  out[0 * 32] = ptx::shuffle(value, 7);
  out[1 * 32] = ptx::shuffle(value, 5, ptx::kAllLanes, 8);
  out[2 * 32] = ptx::shuffle_up(value, 3);
  out[3 * 32] = ptx::shuffle_up(value, 3, ptx::kAllLanes, 16);
  out[4 * 32] = ptx::shuffle_down(value, 5);
  out[5 * 32] = ptx::shuffle_down(value, 5, ptx::kAllLanes, 8);
  out[6 * 32] = ptx::shuffle_xor(value, 21);
  out[7 * 32] = static_cast<uint32_t>(ptx::shuffle_xor(static_cast<float>(lane), 3, ptx::kAllLanes, 4));
}

inline bool shuffles() {
  Buffer<uint32_t> out(8 * 32);
  const auto expected = [](int i) {
    const int lane = i % 32, in_8 = lane % 8, in_16 = lane % 16;
    const int source[] = {7,
                          lane - in_8 + 5,
                          lane >= 3 ? lane - 3 : lane,
                          in_16 >= 3 ? lane - 3 : lane,
                          lane + 5 < 32 ? lane + 5 : lane,
                          in_8 + 5 < 8 ? lane + 5 : lane,
                          lane ^ 21,
                          lane ^ 3};
    return static_cast<uint32_t>(source[i / 32] + (i / 32 == 7 ? 0 : 100));
  };
  if (!run(shuffle_kernel, 1, 32, {out.device()})) return false;
  out.fetch();
  return equal("shuffles", out.data, expected);
}

// Two halves of a warp that take different ways at once, then meet.
FLAGATTN_KERNEL(32, 1) partial_mask_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  const int lane = ptx::thread_index();
  const uint32_t odd = 0xaaaaaaaau, even = 0x55555555u;
  uint32_t sum = static_cast<uint32_t>(lane);
  if (lane % 2 != 0) {
    for (int distance = 2; distance < 32; distance *= 2) sum += ptx::shuffle_xor(sum, distance, odd);
    arguments.out[32 + lane] = ptx::ballot(lane > 16, odd);
    ptx::sync_warp(odd);
  } else {
    ptx::sync_warp(even);
    arguments.out[32 + lane] = ptx::vote_all(lane < 31, even) + 2u * ptx::vote_any(lane == 1, even);
    sum += ptx::shuffle_down(sum, 2, even, 4);
  }
  ptx::sync_warp();
  arguments.out[lane] = ptx::shuffle_up(sum, 1);
}

inline bool partial_masks() {
  Buffer<uint32_t> out(2 * 32);
  if (!run(partial_mask_kernel, 1, 32, {out.device()})) return false;
  out.fetch();
  return equal("partial masks", out.data, [](int i) {
    const int lane = i % 32;
    if (i >= 32) return lane % 2 != 0 ? 0xaaaa0000u & ~0x1ffffu : 1u;
    const auto sum = [](int l) { return static_cast<uint32_t>(l % 2 != 0 ? 256 : l % 4 == 0 ? 2 * l + 2 : 2 * l); };
    return lane == 0 ? sum(0) : sum(lane - 1);
  });
}

FLAGATTN_KERNEL(32, 1) vote_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  const int lane = ptx::thread_index();
  uint32_t* out = arguments.out + lane;
  out[0 * 32] = ptx::ballot(lane % 3 == 0);
  out[1 * 32] = ptx::vote_all(lane < 32);
  out[2 * 32] = ptx::vote_all(lane != 9);
  out[3 * 32] = ptx::vote_any(lane == 9);
  out[4 * 32] = ptx::vote_any(lane > 31);
}

inline bool votes() {
  Buffer<uint32_t> out(5 * 32);
  if (!run(vote_kernel, 1, 32, {out.device()})) return false;
  out.fetch();
  return equal("votes", out.data, [](int i) {
    const uint32_t expected[] = {0x49249249u, 1, 0, 1, 0};
    return expected[i / 32];
  });
}

// What a lane writes, others read after the sync of both: no race, and right numbers.
FLAGATTN_KERNEL(64, 1) exchange_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  auto& shared = ptx::shared_storage<Shared>();
  const int i = ptx::thread_index(), lane = i % 32;
  for (int round = 0; round < 3; ++round) {
    shared.words[i] = static_cast<uint32_t>(1000 * round + i);
    if (!planted(Fault::kMissingWarpSync)) ptx::sync_warp();
    arguments.out[64 * round + i] = shared.words[i - lane + (lane + 1) % 32];
    ptx::sync_warp();
  }
}

inline bool warp_exchange() {
  Buffer<uint32_t> out(3 * 64);
  if (!run(exchange_kernel, 1, 64, {out.device()})) return false;
  out.fetch();
  return equal("exchange", out.data, [](int i) {
    const int thread = i % 64, lane = thread % 32;
    return static_cast<uint32_t>(1000 * (i / 64) + thread - lane + (lane + 1) % 32);
  });
}

inline const std::vector<Check> kWarpChecks = {
    {"shuffles", shuffles}, {"partial_masks", partial_masks}, {"votes", votes}, {"warp_exchange", warp_exchange}};

}  // namespace flagattn::instructions
