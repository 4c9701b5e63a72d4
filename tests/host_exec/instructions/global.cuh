// Accesses of one thread to global memory, of every size and by every way past the caches, and packed 16-bit numbers.
#pragma once

#include "arch/ptx/convert.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/global.cuh"
#include "arch/ptx/math.cuh"
#include "tests/host_exec/instructions/check.cuh"

namespace flagattn::instructions {

struct GlobalArguments {
  const uint32_t* source;
  uint32_t* out;
};

// Each thread copies 16 bytes in three ways and one word in pieces.
FLAGATTN_KERNEL(32, 1) global_access_kernel(FLAGATTN_KERNEL_ARGUMENT GlobalArguments arguments) {
  const int thread = ptx::thread_index();
  const uint32_t* from = arguments.source + 4 * thread;
  uint32_t* to = arguments.out + 16 * thread;
  ptx::store_global_16(to, ptx::load_global_16(from));
  ptx::store_global_16(to + 4, ptx::load_global_16_once(from));
  ptx::store_global_16(to + 8, ptx::load_global_written_16(from));
  ptx::store_global(reinterpret_cast<uint64_t*>(to + 12), ptx::load_global(reinterpret_cast<const uint64_t*>(from)));
  const auto* halves = reinterpret_cast<const uint16_t*>(from + 2);
  ptx::store_global(reinterpret_cast<uint16_t*>(to + 14), ptx::load_global(halves));
  ptx::store_global(reinterpret_cast<uint16_t*>(to + 14) + 1, ptx::load_global(halves + 1));
  const auto* bytes = reinterpret_cast<const uint8_t*>(from + 3);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(ptx::load_global(bytes + i)) << 8 * i;
  ptx::store_global(to + 15, word);
}

inline bool global_accesses() {
  Buffer<uint32_t> source(4 * 32), out(16 * 32);
  const auto word = [](int i) { return 0x9e3779b9u * static_cast<uint32_t>(i + 1); };
  for (int i = 0; i < 4 * 32; ++i) source.data[i] = word(i);
  if (!run(global_access_kernel, 1, 32, {source.device(), out.device()})) return false;
  out.fetch();
  return equal("global accesses", out.data, [&](int i) { return word(4 * (i / 16) + i % 4); });
}

// Pairs of numbers that both 16-bit dtypes hold exactly, packed, told apart and widened.
FLAGATTN_KERNEL(32, 1) packed_pair_kernel(FLAGATTN_KERNEL_ARGUMENT GlobalArguments arguments) {
  const int thread = ptx::thread_index();
  const float low = static_cast<float>(thread) - 8.0f, high = 0.25f * static_cast<float>(thread);
  ptx::Bytes16 packed = {{ptx::pack<BFloat16>(low, high), ptx::pack<Float16>(low, high), 0, 0}};
  ptx::keep_packed(packed);
  const ptx::FloatPair wide = ptx::unpack<BFloat16>(packed.words[0]), half = ptx::unpack<Float16>(packed.words[1]);
  const float sums[4] = {wide.low, wide.high, half.low, half.high};
  for (int i = 0; i < 4; ++i) {
    ptx::store_global(arguments.out + 4 * thread + i, static_cast<uint32_t>(4.0f * sums[i] + 64.0f));
  }
}

inline bool packed_pairs() {
  Buffer<uint32_t> out(4 * 32);
  if (!run(packed_pair_kernel, 1, 32, {nullptr, out.device()})) return false;
  out.fetch();
  return equal("packed pairs", out.data, [](int i) {
    const int thread = i / 4;
    return static_cast<uint32_t>(i % 2 == 0 ? 4 * (thread - 8) + 64 : thread + 64);
  });
}

inline const std::vector<Check> kGlobalChecks = {{"global_accesses", global_accesses}, {"packed_pairs", packed_pairs}};

}  // namespace flagattn::instructions
