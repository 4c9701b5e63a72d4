// Barriers in shared memory, bulk copies and tensor copies (sm_90).
#pragma once

#include "arch/ptx/barrier.cuh"
#include "arch/ptx/bulk_copy.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/mbarrier.cuh"
#include "arch/ptx/tensor_copy.cuh"
#include "tests/host_exec/instructions/check.cuh"

namespace flagattn::instructions {

struct BulkArguments {
  const uint32_t* source;
  uint32_t* out;
};

// A ring of two slots of 32 words: one thread of warp 0 fills them, warps 1 and 2 read them.
struct RingShared {
  alignas(128) uint32_t slots[2][32];
  uint64_t full[2], empty[2];
};
inline constexpr int kRounds = 7;

FLAGATTN_DEVICE void fill_ring(RingShared& shared, const uint32_t* source) {
  for (int round = 0; round < kRounds; ++round) {
    const int slot = round % 2;
    const bool waits = !planted(Fault::kEarlySlotRelease);
    if (waits && round >= 2) ptx::mbarrier_wait(ptx::shared_address(&shared.empty[slot]), (round / 2 - 1) % 2);
    const ptx::SharedAddress full = ptx::shared_address(&shared.full[slot]);
    if (planted(Fault::kMissingExpectation)) {
      ptx::mbarrier_arrive(full);
    } else {
      ptx::mbarrier_arrive_expect(full, sizeof shared.slots[slot]);
    }
    ptx::bulk_load(ptx::shared_address(shared.slots[slot]), source + 32 * round, sizeof shared.slots[slot], full);
  }
}

FLAGATTN_KERNEL(96, 1) ring_kernel(FLAGATTN_KERNEL_ARGUMENT BulkArguments arguments) {
  auto& shared = ptx::shared_storage<RingShared>();
  const int thread = ptx::thread_index();
  if (thread == 0) {
    for (int slot = 0; slot < 2; ++slot) {
      ptx::mbarrier_init(ptx::shared_address(&shared.full[slot]), 1);
      ptx::mbarrier_init(ptx::shared_address(&shared.empty[slot]), 64);
    }
    if (!planted(Fault::kMissingProxyFence)) ptx::fence_mbarrier_init();
  }
  ptx::sync_block();
  if (thread == 0) fill_ring(shared, arguments.source);
  if (thread < 32) return;
  for (int round = 0; round < kRounds; ++round) {
    const int slot = round % 2;
    if (!planted(Fault::kMissingCopyWait)) {
      ptx::mbarrier_wait(ptx::shared_address(&shared.full[slot]), round / 2 % 2);
    }
    arguments.out[64 * round + thread - 32] = shared.slots[slot][(thread + 1) % 32];
    ptx::mbarrier_arrive(ptx::shared_address(&shared.empty[slot]));
  }
}

inline bool ring() {
  Buffer<uint32_t> source(32 * kRounds), out(64 * kRounds);
  for (int i = 0; i < 32 * kRounds; ++i) source.data[i] = static_cast<uint32_t>(3 * i);
  if (!run<RingShared>(ring_kernel, 1, 96, {source.device(), out.device()})) return false;
  out.fetch();
  return equal("ring", out.data, [](int i) { return static_cast<uint32_t>(3 * (i / 64 * 32 + (i + 1) % 32)); });
}

// Two warps fill shared memory; a thread stores it, overwrites it when it has been read, and adds to what it stored.
FLAGATTN_KERNEL(64, 1) store_kernel(FLAGATTN_KERNEL_ARGUMENT BulkArguments arguments) {
  auto& shared = ptx::shared_storage<Shared>();
  const int thread = ptx::thread_index();
  const ptx::SharedAddress words = ptx::shared_address(shared.words);
  for (int pass = 0; pass < 2; ++pass) {
    ptx::store_shared(words + 4 * thread, static_cast<uint32_t>(1000 * pass + thread));
    if (!planted(Fault::kMissingProxyFence)) ptx::fence_async_proxy();
    if (!planted(Fault::kMissingBarrier)) ptx::sync_block();
    if (thread == 0) {
      if (pass == 0) {
        ptx::bulk_store(arguments.out, words, 256);
      } else {
        ptx::bulk_reduce_add(arguments.out, words, 256);
      }
      ptx::bulk_commit();
      if (pass == 0 && !planted(Fault::kMissingCopyWait)) ptx::bulk_wait_read<0>();
      if (pass == 0 && !planted(Fault::kMissingCopyWait)) ptx::bulk_wait<0>();
      if (pass == 1) ptx::bulk_wait<0>();
    }
    ptx::sync_block();
  }
}

inline bool bulk_stores() {
  Buffer<uint32_t> out(64);
  if (!run(store_kernel, 1, 64, {nullptr, out.device()})) return false;
  out.fetch();
  return equal("bulk stores", out.data, [](int i) { return static_cast<uint32_t>(1000 + 2 * i); });
}

// ---- Tensors: 2-byte or 4-byte elements that hold small numbers.

struct TensorArguments {
  TensorMap map;
  int32_t coordinates[kMostTensorDims];
  int32_t box_bytes;
  int32_t mode;     // 0 loads, 1 stores, 2 adds, 3 and 4 take the minimum or maximum
  uint32_t* words;  // the box as it lies in shared memory
};

struct TensorShared {
  alignas(1024) uint32_t words[4096];
  uint64_t barrier;
};

template <int kRank>
FLAGATTN_KERNEL(32, 1)
tensor_kernel(FLAGATTN_KERNEL_ARGUMENT TensorArguments arguments) {
  auto& shared = ptx::shared_storage<TensorShared>();
  const int thread = ptx::thread_index();
  const ptx::SharedAddress words = ptx::shared_address(shared.words);
  const ptx::SharedAddress barrier = ptx::shared_address(&shared.barrier);
  int32_t coordinates[kRank];
  for (int d = 0; d < kRank; ++d) coordinates[d] = arguments.coordinates[d];
  if (arguments.mode == 0) {
    if (thread == 0) {
      ptx::prefetch_tensor_map(arguments.map);
      ptx::mbarrier_init(barrier, 1);
      ptx::fence_mbarrier_init();
      ptx::mbarrier_arrive_expect(barrier, static_cast<uint32_t>(arguments.box_bytes));
      ptx::tensor_load(words, arguments.map, coordinates, barrier);
    }
    ptx::sync_block();
    ptx::mbarrier_wait(barrier, 0);
    for (int i = thread; i < arguments.box_bytes / 4; i += 32) arguments.words[i] = shared.words[i];
    return;
  }
  for (int i = thread; i < arguments.box_bytes / 4; i += 32) ptx::store_shared(words + 4 * i, arguments.words[i]);
  ptx::fence_async_proxy();
  ptx::sync_block();
  if (thread != 0) return;
  if (arguments.mode == 1) ptx::tensor_store(arguments.map, words, coordinates);
  if (arguments.mode == 2) ptx::tensor_reduce_add(arguments.map, words, coordinates);
  if (arguments.mode == 3) ptx::tensor_reduce_min(arguments.map, words, coordinates);
  if (arguments.mode == 4) ptx::tensor_reduce_max(arguments.map, words, coordinates);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

using TensorKernel = void (*)(const TensorArguments);
inline constexpr TensorKernel kTensorKernels[] = {tensor_kernel<1>, tensor_kernel<2>, tensor_kernel<3>,
                                                  tensor_kernel<4>, tensor_kernel<5>};

// One case, with uint32_t or BFloat16 elements: a tensor of numbers 1, 2, ..., a box of numbers 1000, 1001, ... (float
// numbers small enough to be exact are not needed: loads and stores move bits, integers are reduced).
struct TensorCase {
  TensorType type;
  int rank;
  int sizes[kMostTensorDims];
  int box[kMostTensorDims];
  int coordinates[kMostTensorDims];
  Swizzle swizzle;
  OutsideFill fill;
};

template <typename Element>
bool tensor_case(const TensorCase& c, int mode) {
  int64_t strides[kMostTensorDims], bytes = c.sizes[0] * static_cast<int64_t>(sizeof(Element));
  bytes = (bytes + 15) / 16 * 16 + 16;  // rows are padded
  strides[0] = sizeof(Element);
  int box_elements = c.box[0];
  for (int d = 1; d < c.rank; ++d) {
    strides[d] = bytes;
    bytes *= c.sizes[d];
    box_elements *= c.box[d];
  }
  Buffer<Element> tensor(static_cast<size_t>(bytes) / sizeof(Element));
  Buffer<uint32_t> words(box_elements * sizeof(Element) / 4);
  std::vector<Element> box(box_elements);
  for (size_t i = 0; i < tensor.data.size(); ++i) tensor.data[i] = static_cast<Element>(i % 5000 + 1);
  // What should be: the element of the tensor at each place of the box, and where it lies in (swizzled) shared memory.
  std::vector<Element> tensor_after = tensor.data;
  std::vector<uint32_t> words_after(words.data.size());
  TensorShape shape;
  shape.type = c.type;
  shape.rank = c.rank;
  shape.swizzle = c.swizzle;
  shape.fill = c.fill;
  TensorArguments arguments{};
  for (int d = 0; d < c.rank; ++d) {
    shape.sizes[d] = c.sizes[d];
    shape.box[d] = c.box[d];
    if (d > 0) shape.strides[d - 1] = strides[d];
    arguments.coordinates[d] = c.coordinates[d];
  }
  for (int i = 0; i < box_elements; ++i) {
    int64_t rest = i, at = 0;
    bool inside = true;
    for (int d = 0; d < c.rank; ++d) {
      const int64_t index = rest % c.box[d] + c.coordinates[d];
      rest /= c.box[d];
      inside = inside && index >= 0 && index < c.sizes[d];
      at += index * strides[d];
    }
    const uint32_t place = swizzled(static_cast<uint32_t>(i * sizeof(Element)), c.swizzle);
    const auto value = static_cast<Element>(1000 + i % 3000);
    Element loaded =
        c.fill == OutsideFill::kNaN ? static_cast<Element>(sizeof(Element) == 2 ? 0x7fff : 0x7fffffff) : Element{0};
    if (inside) {
      Element& target = tensor_after[static_cast<size_t>(at) / sizeof(Element)];
      loaded = target;
      if (mode == 1) target = value;
      if (mode == 2) target = static_cast<Element>(target + value);
      if (mode == 3) target = target < value ? target : value;
      if (mode == 4) target = target < value ? value : target;
    }
    std::memcpy(reinterpret_cast<char*>(words_after.data()) + place, &loaded, sizeof loaded);
    if (mode != 0) std::memcpy(reinterpret_cast<char*>(words.data.data()) + place, &value, sizeof value);
  }
  shape.data = tensor.device();
  const Status encoded = ptx::encode_tensor_map(arguments.map, shape);
  if (!encoded.ok()) {
    std::printf("%s\n", encoded.message.c_str());
    return false;
  }
  arguments.box_bytes = static_cast<int32_t>(box_elements * sizeof(Element));
  arguments.mode = mode;
  arguments.words = words.device();
  if (!run<TensorShared>(kTensorKernels[c.rank - 1], 1, 32, arguments)) return false;
  words.fetch();
  tensor.fetch();
  if (mode == 0) return equal("loaded box", words.data, [&](int i) { return words_after[i]; });
  return equal("stored tensor", tensor.data, [&](int i) { return tensor_after[i]; });
}

inline const TensorCase kTensorCases[] = {
    {TensorType::kUInt32, 1, {100}, {64}, {20}, Swizzle::kNone, OutsideFill::kZero},
    {TensorType::kUInt32, 1, {100}, {64}, {-30}, Swizzle::kNone, OutsideFill::kZero},
    {TensorType::kUInt32, 2, {30, 9}, {16, 8}, {20, 4}, Swizzle::k64, OutsideFill::kZero},
    {TensorType::kUInt32, 2, {30, 9}, {8, 16}, {-3, -2}, Swizzle::k32, OutsideFill::kZero},
    {TensorType::kUInt32, 2, {64, 20}, {32, 16}, {16, 2}, Swizzle::k128, OutsideFill::kZero},
    {TensorType::kUInt32, 3, {20, 5, 4}, {8, 4, 3}, {13, 2, 2}, Swizzle::kNone, OutsideFill::kZero},
    {TensorType::kUInt32, 4, {40, 3, 5, 2}, {32, 2, 4, 2}, {4, 1, -1, 0}, Swizzle::k128, OutsideFill::kZero},
    {TensorType::kUInt32, 5, {10, 3, 2, 4, 3}, {4, 2, 2, 2, 2}, {7, 1, 0, 3, 1}, Swizzle::kNone, OutsideFill::kZero},
    {TensorType::kUInt32, 5, {10, 3, 2, 4, 3}, {4, 3, 2, 2, 2}, {-1, -1, 1, 2, 2}, Swizzle::kNone, OutsideFill::kZero},
};
inline const TensorCase kTensorCases16Bit[] = {
    {TensorType::kBFloat16, 2, {100, 70}, {64, 64}, {50, 30}, Swizzle::k128, OutsideFill::kZero},
    {TensorType::kBFloat16, 2, {100, 70}, {32, 64}, {-5, 30}, Swizzle::k64, OutsideFill::kNaN},
    {TensorType::kFloat16, 3, {70, 3, 5}, {16, 3, 7}, {60, -1, -1}, Swizzle::k32, OutsideFill::kNaN},
    {TensorType::kBFloat16, 4, {64, 2, 3, 2}, {64, 1, 64, 1}, {0, 1, 0, 1}, Swizzle::k128, OutsideFill::kZero},
};

inline bool tensor_loads() {
  bool right = true;
  for (const TensorCase& c : kTensorCases) right = right && tensor_case<uint32_t>(c, 0);
  for (const TensorCase& c : kTensorCases16Bit) right = right && tensor_case<uint16_t>(c, 0);
  return right;
}
inline bool tensor_stores() {
  bool right = true;
  for (const TensorCase& c : kTensorCases) {
    for (int mode = 1; mode <= 4; ++mode) right = right && tensor_case<uint32_t>(c, mode);
  }
  for (const TensorCase& c : kTensorCases16Bit) right = right && tensor_case<uint16_t>(c, 1);
  return right;
}

inline const std::vector<Check> kBulkChecks = {
    {"ring", ring}, {"bulk_stores", bulk_stores}, {"tensor_loads", tensor_loads}, {"tensor_stores", tensor_stores}};

}  // namespace flagattn::instructions
