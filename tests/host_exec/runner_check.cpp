// The runner's own tests, on kernels of a few lines. `runner_check NAME` runs one; 0 means that it behaved as expected,
// which for the sanitizer builds may be a report. Names that start with race_ hold a data race that only
// ThreadSanitizer can prove.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "arch/ptx/atomic.cuh"
#include "arch/ptx/barrier.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/launch.cuh"
#include "arch/ptx/math.cuh"
#include "arch/ptx/matrix.cuh"
#include "arch/ptx/matrix_product.cuh"
#include "arch/ptx/warp.cuh"
#include "host_exec/host_exec.h"
#include "tests/host_exec/counter_checks.h"

namespace flagattn {
namespace {

struct Shared {
  alignas(1024) uint32_t words[1024];
};

struct Arguments {
  float* out;
  const uint16_t* source;
};

Status run(void (*kernel)(const Arguments), int blocks, int threads, const Arguments& arguments = {}) {
  return ptx::launch<Shared>(kernel, blocks, threads, {}, arguments);
}

bool stops_with(const Status& status, const char* text) {
  if (status.message.find(text) != std::string::npos) return true;
  std::printf("expected \"%s\", got \"%s\"\n", text, status.message.c_str());
  return false;
}

// ---- What kernels may do

bool shuffles_exchange_lanes() {
  std::vector<float> out(64);
  const Status status = run(
      [](const Arguments a) {
        const int i = ptx::thread_index();
        a.out[i] = ptx::shuffle_xor(static_cast<float>(i), 5);
      },
      1, 64, {out.data(), nullptr});
  bool right = status.ok();
  for (int i = 0; i < 64; ++i) right = right && out[i] == static_cast<float>(i ^ 5);
  return right;
}

bool blocks_all_run() {
  std::vector<float> out(100);
  const Status status = run(
      [](const Arguments a) {
        if (ptx::thread_index() == 0) a.out[ptx::block_index()] += 1.0f;
      },
      100, 32, {out.data(), nullptr});
  bool right = status.ok();
  for (float x : out) right = right && x == 1.0f;
  return right;
}

// Warp 0 fills, warps 1 and 2 read, through barriers of 96 threads that warp 0 does not wait at.
void hand_over(const Arguments a) {
  auto& shared = ptx::shared_storage<Shared>();
  const int i = ptx::thread_index();
  for (uint32_t round = 0; round < 4; ++round) {
    if (i < 32) {
      shared.words[i] = 100 * round + i;
      ptx::named_barrier_arrive<1, 96>();
      ptx::named_barrier_sync<2, 96>();
    } else {
      ptx::named_barrier_sync<1, 96>();
      a.out[(i - 32) * 4 + round] = static_cast<float>(shared.words[i % 32]);
      ptx::named_barrier_arrive<2, 96>();
    }
  }
}
bool named_barriers_hand_over() {
  std::vector<float> out(64 * 4, -1.0f);
  const Status status = run(hand_over, 1, 96, {out.data(), nullptr});
  bool right = status.ok();
  for (int i = 0; i < 64; ++i) {
    for (int round = 0; round < 4; ++round)
      right = right && out[i * 4 + round] == static_cast<float>(100 * round + i % 32);
  }
  return right;
}

// d = a b for a(i, k) = i + k and b(k, n) = k - n, small integers and so exact, from shared memory.
void multiply(const Arguments a) {
  auto& shared = ptx::shared_storage<Shared>();
  auto* elements =
      reinterpret_cast<uint16_t*>(shared.words);  // a: 16 rows of 16; b: 16 rows (k) of 8, each padded to 16
  const int lane = ptx::thread_index();
  for (int i = lane; i < 256; i += 32) {
    const int row = i / 16, column = i % 16;
    elements[i] = static_cast<uint16_t>(ptx::pack<Float16>(static_cast<float>(row + column), 0.0f));
    elements[256 + i] = static_cast<uint16_t>(ptx::pack<Float16>(static_cast<float>(row - column), 0.0f));
  }
  ptx::sync_warp();
  uint32_t fragment_a[4], fragment_b[4];
  ptx::ldmatrix_x4(fragment_a, ptx::shared_address(elements + lane % 16 * 16 + lane / 16 * 8));
  ptx::ldmatrix_x4_trans(fragment_b, ptx::shared_address(elements + 256 + lane % 16 * 16 + lane / 16 * 8));
  float d[4] = {};
  ptx::mma_m16n8k16<Float16>(d, fragment_a, {fragment_b[0], fragment_b[1]});
  for (int e = 0; e < 4; ++e) a.out[(lane / 4 + 8 * (e / 2)) * 8 + 2 * (lane % 4) + e % 2] = d[e];
}
bool matrices_multiply() {
  std::vector<float> out(128);
  const Status status = run(multiply, 1, 32, {out.data(), nullptr});
  bool right = status.ok();
  for (int i = 0; i < 16; ++i) {
    for (int n = 0; n < 8; ++n) {
      float expected = 0.0f;
      for (int k = 0; k < 16; ++k) expected += static_cast<float>((i + k) * (k - n));
      right = right && out[i * 8 + n] == expected;
    }
  }
  return right;
}

// A copy that is not in range reads nothing (its source is null) and leaves zeros; shared memory starts as NaN.
bool copies_fill_with_zeros() {
  alignas(16) static const uint16_t source[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> out(3);
  const Status status = run(
      [](const Arguments a) {
        auto& shared = ptx::shared_storage<Shared>();
        if (ptx::thread_index() != 0) return;
        ptx::cp_async_16(ptx::shared_address(shared.words), a.source, true);
        ptx::cp_async_16(ptx::shared_address(shared.words + 4), nullptr, false);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        a.out[0] = static_cast<float>(shared.words[3] >> 16);
        a.out[1] = static_cast<float>(shared.words[5]);
        std::memcpy(&a.out[2], &shared.words[8], 4);
      },
      1, 32, {out.data(), source});
  return status.ok() && out[0] == 8.0f && out[1] == 0.0f && std::isnan(out[2]);
}

// ---- What it must stop

bool deadlock_is_named() {
  const Status status = run(
      [](const Arguments) {
        if (ptx::thread_index() < 32) {
          ptx::named_barrier_sync<3, 64>();
        } else {
          ptx::sync_block();
        }
      },
      1, 64);
  return stops_with(status, "deadlock: warp 0: 32 lanes at barrier 3; warp 1: 32 lanes at barrier 0");
}
bool divergence_is_named() {
  const Status status = run(
      [](const Arguments) {
        if (ptx::thread_index() % 2 == 0) {
          ptx::sync_warp();
        } else {
          static_cast<void>(ptx::shuffle_xor(0.0f, 1));
        }
      },
      1, 32);
  return stops_with(status, "the warp diverges: this lane is at shfl.sync, others are at bar.warp.sync");
}
bool returned_lanes_are_named() {
  const Status status = run(
      [](const Arguments) {
        if (ptx::thread_index() != 0) ptx::sync_warp();
      },
      1, 32);
  return stops_with(status, "bar.warp.sync is executed after lanes of the warp have returned");
}
bool copies_must_be_waited_for() {
  alignas(16) static const uint16_t source[8] = {};
  const Status status = run(
      [](const Arguments a) {
        auto& shared = ptx::shared_storage<Shared>();
        ptx::cp_async_16(ptx::shared_address(shared.words + 4 * ptx::thread_index()), a.source, true);
        ptx::cp_async_commit();
      },
      1, 32, {nullptr, source});
  return stops_with(status, "returns without having waited for its cp.async");
}
bool misaligned_copies_stop() {
  alignas(16) static const uint16_t source[16] = {};
  const Status status = run(
      [](const Arguments a) {
        ptx::cp_async_16(ptx::shared_address(ptx::shared_storage<Shared>().words), a.source + 1, true);
      },
      1, 32, {nullptr, source});
  return stops_with(status, "which is not a multiple of 16");
}
bool shared_memory_has_an_end() {
  const Status status = run(
      [](const Arguments) {
        uint32_t matrices[4];
        ptx::ldmatrix_x4(matrices, ptx::shared_address(ptx::shared_storage<Shared>().words + 1024));
      },
      1, 32);
  return stops_with(status, "lies outside the block's 4096 bytes");
}
bool lanes_of_a_mask_must_agree() {
  const Status status = run(
      [](const Arguments) {
        const uint32_t lane = 1u << ptx::thread_index();
        ptx::sync_warp(lane < 16 ? 0xffu : ptx::kAllLanes);
      },
      1, 32);
  return stops_with(status, "lanes of one bar.warp.sync give the masks");
}
bool masks_hold_the_caller() {
  return stops_with(run([](const Arguments) { static_cast<void>(ptx::ballot(true, 1)); }, 1, 32),
                    "vote.sync with the mask 0x00000001, which lacks the lane that calls");
}
bool shuffles_read_inside_the_mask() {
  const Status status = run(
      [](const Arguments) {
        if (ptx::thread_index() < 16) static_cast<void>(ptx::shuffle(1, 20, 0xffffu));
      },
      1, 32);
  return stops_with(status, "shfl.sync reads lane 20, which the mask 0x0000ffff lacks");
}
bool blocks_must_be_resident_together() {
  static uint32_t counter;
  counter = 0;
  host_exec::options().resident = 1;
  const Status status = run(
      [](const Arguments) {
        if (ptx::thread_index() != 0) return;
        if (ptx::block_index() == 0) ptx::global_wait(&counter, 1);
        ptx::signal(&counter);
      },
      2, 32);
  return stops_with(status, "deadlock between blocks: block 0: warp 0: 1 lane at global_wait");
}
bool shared_memory_has_the_limit_of_the_chip() {
  struct Large {
    std::byte bytes[164 << 10];
  };
  void (*const kernel)(const Arguments) = [](const Arguments) {};
  const auto launched_on = [&](int compute_capability) {
    host_exec::options().compute_capability = compute_capability;
    return ptx::launch<Large>(kernel, 1, 32, {}, Arguments{});
  };
  return stops_with(launched_on(80), "compute capability 8.0 allows 166912") &&
         stops_with(launched_on(86), "compute capability 8.6 allows 101376") && launched_on(90).ok();
}
bool odd_blocks_are_refused() {
  return stops_with(run([](const Arguments) {}, 1, 33), "the runner takes whole warps");
}

// ---- What only ThreadSanitizer sees

bool race_between_warps() {
  return run([](const Arguments) { ptx::shared_storage<Shared>().words[ptx::thread_index() % 32] = 1; }, 1, 64).ok();
}
bool race_between_blocks() {
  std::vector<float> out(1);
  host_exec::options().workers = 2;
  return run(
             [](const Arguments a) {
               if (ptx::thread_index() == 0) a.out[0] = 1.0f;
             },
             2, 32, {out.data(), nullptr})
      .ok();
}
// Blocks do not become ordered by running one after the other, however far apart they are.
template <int kApart, int kWorkers>
bool race_between_blocks_apart() {
  std::vector<float> out(32);
  host_exec::options().workers = kWorkers;
  return run(
             [](const Arguments a) {
               if (ptx::block_index() % kApart == 0) a.out[ptx::thread_index()] = 1.0f;
             },
             kApart + 1, 32, {out.data(), nullptr})
      .ok();
}
// Nor where each has had barriers, by which its threads know of each other.
bool race_between_blocks_with_barriers() {
  std::vector<float> out(64);
  return run(
             [](const Arguments a) {
               ptx::sync_block();
               if (ptx::block_index() % 3 == 0) a.out[ptx::thread_index()] = 1.0f;
               ptx::sync_block();
             },
             4, 64, {out.data(), nullptr})
      .ok();
}
bool race_with_copy() {
  alignas(16) static const uint16_t source[8] = {};
  std::vector<float> out(1);
  return run(
             [](const Arguments a) {
               auto& shared = ptx::shared_storage<Shared>();
               if (ptx::thread_index() != 0) return;
               ptx::cp_async_16(ptx::shared_address(shared.words), a.source, true);
               ptx::cp_async_commit();
               a.out[0] = static_cast<float>(shared.words[0]);
               ptx::cp_async_wait<0>();
             },
             1, 32, {out.data(), source})
      .ok();
}

// With .ftz numbers below 2^-126 are 0, as operands and as results.
bool approximations_flush_denormals() {
  constexpr float kInfinity = INFINITY;
  std::vector<float> out(6);
  const Status status = run(
      [](const Arguments a) {
        if (ptx::thread_index() != 0) return;
        a.out[0] = ptx::reciprocal_approx(-3e38f);
        a.out[1] = ptx::reciprocal_approx(1e-39f);
        a.out[2] = ptx::log2_approx(1e-39f);
        a.out[3] = ptx::exp2_approx(-126.5f);
        a.out[4] = ptx::reciprocal_approx(0x1p126f);
        a.out[5] = ptx::exp2_approx(-126.0f);
      },
      1, 32, {out.data(), nullptr});
  return status.ok() && out[0] == 0.0f && std::signbit(out[0]) && out[1] == kInfinity && out[2] == -kInfinity &&
         out[3] == 0.0f && out[4] == 0x1p-126f && out[5] == 0x1p-126f;
}

int run_check(const std::string& name, uint32_t seed) {
  const std::map<std::string, std::function<bool()>> checks = {
      {"shuffles_exchange_lanes", shuffles_exchange_lanes},
      {"blocks_all_run", blocks_all_run},
      {"named_barriers_hand_over", named_barriers_hand_over},
      {"matrices_multiply", matrices_multiply},
      {"copies_fill_with_zeros", copies_fill_with_zeros},
      {"approximations_flush_denormals", approximations_flush_denormals},
      {"global_sectors_are_counted", counter_checks::global_sectors_are_counted},
      {"bank_conflicts_are_counted", counter_checks::bank_conflicts_are_counted},
      {"matrix_conflicts_are_counted", counter_checks::matrix_conflicts_are_counted},
      {"instructions_are_counted", counter_checks::instructions_are_counted},
      {"deadlock_is_named", deadlock_is_named},
      {"divergence_is_named", divergence_is_named},
      {"returned_lanes_are_named", returned_lanes_are_named},
      {"copies_must_be_waited_for", copies_must_be_waited_for},
      {"misaligned_copies_stop", misaligned_copies_stop},
      {"shared_memory_has_an_end", shared_memory_has_an_end},
      {"odd_blocks_are_refused", odd_blocks_are_refused},
      {"shared_memory_has_the_limit_of_the_chip", shared_memory_has_the_limit_of_the_chip},
      {"lanes_of_a_mask_must_agree", lanes_of_a_mask_must_agree},
      {"masks_hold_the_caller", masks_hold_the_caller},
      {"shuffles_read_inside_the_mask", shuffles_read_inside_the_mask},
      {"blocks_must_be_resident_together", blocks_must_be_resident_together},
      {"race_between_warps", race_between_warps},
      {"race_between_blocks", race_between_blocks},
      {"race_between_blocks_1_apart", race_between_blocks_apart<1, 1>},
      {"race_between_blocks_2_apart", race_between_blocks_apart<2, 1>},
      {"race_between_blocks_4_apart", race_between_blocks_apart<4, 1>},
      {"race_between_blocks_5_apart", race_between_blocks_apart<5, 1>},
      {"race_between_blocks_2_apart_of_two_workers", race_between_blocks_apart<2, 2>},
      {"race_between_blocks_4_apart_of_two_workers", race_between_blocks_apart<4, 2>},
      {"race_between_blocks_with_barriers", race_between_blocks_with_barriers},
      {"race_with_copy", race_with_copy},
  };
  if (name == "list") {
    for (const auto& [check, body] : checks) std::printf("%s\n", check.c_str());
    return 0;
  }
  host_exec::options().seed = seed;
  return checks.at(name)() ? 0 : 1;
}

}  // namespace
}  // namespace flagattn

int main(int argc, char** argv) {
  return flagattn::run_check(argc > 1 ? argv[1] : "list", argc > 2 ? static_cast<uint32_t>(std::stoul(argv[2])) : 0);
}
