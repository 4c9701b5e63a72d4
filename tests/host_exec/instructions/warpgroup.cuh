// Products of a warpgroup (sm_90a): operands K-major and transposed, in shared memory and in registers, swizzled by
// 128 bytes.
#pragma once

#include "arch/ptx/barrier.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/mbarrier.cuh"
#include "arch/ptx/tensor_copy.cuh"
#include "arch/ptx/warpgroup_product.cuh"
#include "tests/host_exec/instructions/matrix.cuh"

namespace flagattn::instructions {

inline constexpr int kWgmmaK = 64;  // four steps of 16

// a is 64 x 64, b is N x 64, or 64 x N where it is transposed; 2-byte elements.
struct WarpgroupArguments {
  TensorMap map_b;  // boxes of 64 x 64 elements, 128 bytes a row
  const uint16_t* a;
  float* d;
};

template <int kN>
struct WarpgroupShared {
  alignas(1024) uint16_t a[64 * kWgmmaK];
  alignas(1024) uint16_t b[kN * kWgmmaK];  // in panels of 64 rows or columns
  uint64_t barrier;
};

// Threads write `a` themselves, element (row, k) or, transposed, (k, row), and show it to the products.
template <bool kTransposeA>
FLAGATTN_DEVICE void write_a(ptx::SharedAddress destination, const uint16_t* a, int thread) {
  for (int i = thread; i < 64 * kWgmmaK / 2; i += 128) {
    const int line = i / 32, pair = i % 32;  // lines of 128 bytes
    const int first = kTransposeA ? 2 * pair * kWgmmaK + line : line * kWgmmaK + 2 * pair;
    const uint32_t low = a[first], high = a[first + (kTransposeA ? kWgmmaK : 1)];
    ptx::store_shared(destination + swizzled(static_cast<uint32_t>(4 * i), Swizzle::k128), low | high << 16);
  }
  if (!planted(Fault::kMissingProxyFence)) ptx::fence_async_proxy();
}

template <typename Element, int kN, bool kRegistersA, bool kTransposeA, bool kTransposeB>
FLAGATTN_KERNEL(128, 1)
warpgroup_kernel(FLAGATTN_KERNEL_ARGUMENT WarpgroupArguments arguments) {
  auto& shared = ptx::shared_storage<WarpgroupShared<kN>>();
  const int thread = ptx::thread_index(), lane = thread % 32, warp = thread / 32;
  const ptx::SharedAddress a = ptx::shared_address(shared.a), b = ptx::shared_address(shared.b);
  const ptx::SharedAddress barrier = ptx::shared_address(&shared.barrier);
  constexpr uint32_t kPanelBytes = 64 * kWgmmaK * 2;
  if (thread == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(barrier, kN * kWgmmaK * 2);
    for (int panel = 0; panel < kN / 64; ++panel) {
      const int32_t coordinates[2] = {kTransposeB ? 64 * panel : 0, kTransposeB ? 0 : 64 * panel};
      ptx::tensor_load(b + panel * kPanelBytes, arguments.map_b, coordinates, barrier);
    }
  }
  if (!kRegistersA) write_a<kTransposeA>(a, arguments.a, thread);
  ptx::sync_block();
  ptx::mbarrier_wait(barrier, 0);

  float d[kN / 2];
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kN / 2; ++i) d[i] = 1e9f;  // which the first product must not add to
  uint32_t fragments[kWgmmaK / 16][4];
  FLAGATTN_UNROLL_ALL
  for (int step = 0; step < kWgmmaK / 16; ++step) {
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < 4; ++r) {
      const int row = 16 * warp + lane / 4 + 8 * (r % 2), k = 16 * step + 2 * (lane % 4) + 8 * (r / 2);
      const uint16_t* pair = arguments.a + row * kWgmmaK + k;
      fragments[step][r] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
  ptx::wgmma_pin(d);
  if (!planted(Fault::kMissingProductFence)) ptx::wgmma_fence();
  FLAGATTN_UNROLL_ALL
  for (int step = 0; step < kWgmmaK / 16; ++step) {
    // 16 of K are 32 bytes of a line, or 16 lines.
    const uint32_t step_a = kTransposeA ? 16 * 128 * step : 32 * step,
                   step_b = kTransposeB ? 16 * 128 * step : 32 * step;
    const uint64_t at_a = descriptor_bits({a + step_a, kTransposeA ? kPanelBytes : 16, 1024, Swizzle::k128});
    const uint64_t at_b = descriptor_bits({b + step_b, kTransposeB ? kPanelBytes : 16, 1024, Swizzle::k128});
    if constexpr (kRegistersA) {
      ptx::wgmma_m64k16<Element, kN, kTransposeB>(d, fragments[step], at_b, step > 0);
    } else {
      ptx::wgmma_m64k16<Element, kN, kTransposeA, kTransposeB>(d, at_a, at_b, step > 0);
    }
  }
  ptx::wgmma_commit();
  if (!planted(Fault::kMissingCopyWait)) ptx::wgmma_wait<0>();
  ptx::wgmma_pin(d);
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kN / 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    arguments.d[row * kN + column] = d[i];
  }
}

template <typename Element, int kN, bool kRegistersA, bool kTransposeA, bool kTransposeB>
bool warpgroup_product(const char* name) {
  const auto value_a = [](int row, int k) { return (row * 5 + k * 3 + row * k) % 7 - 3; };
  const auto value_b = [](int column, int k) { return (column * 3 + k * 2 + column / 9 * k) % 7 - 3; };
  const auto bits = [](int value) { return static_cast<uint16_t>(bits_of<Element>(value)); };
  Buffer<uint16_t> a(64 * kWgmmaK), b(kN * kWgmmaK);
  Buffer<float> d(64 * kN);
  for (int k = 0; k < kWgmmaK; ++k) {
    for (int row = 0; row < 64; ++row) a.data[row * kWgmmaK + k] = bits(value_a(row, k));
    for (int column = 0; column < kN; ++column) {
      b.data[kTransposeB ? k * kN + column : column * kWgmmaK + k] = bits(value_b(column, k));
    }
  }
  TensorShape shape;
  shape.type = tensor_type_of<Element>();
  shape.rank = 2;
  shape.data = b.device();
  shape.sizes[0] = kTransposeB ? kN : kWgmmaK;
  shape.sizes[1] = kTransposeB ? kWgmmaK : kN;
  shape.strides[0] = shape.sizes[0] * 2;
  shape.box[0] = shape.box[1] = 64;
  shape.swizzle = Swizzle::k128;
  WarpgroupArguments arguments{};
  if (!ptx::encode_tensor_map(arguments.map_b, shape).ok()) return false;
  arguments.a = a.device();
  arguments.d = d.device();
  if (!run<WarpgroupShared<kN>>(warpgroup_kernel<Element, kN, kRegistersA, kTransposeA, kTransposeB>, 1, 128,
                                arguments)) {
    return false;
  }
  d.fetch();
  return equal(name, d.data, [&](int i) {
    int sum = 0;
    for (int k = 0; k < kWgmmaK; ++k) sum += value_a(i / kN, k) * value_b(i % kN, k);
    return static_cast<float>(sum);
  });
}

inline bool warpgroup_shared_a() {
  return warpgroup_product<BFloat16, 128, false, false, false>("bf16 n128") &&
         warpgroup_product<Float16, 64, false, false, true>("fp16 n64, b transposed") &&
         warpgroup_product<BFloat16, 256, false, true, true>("bf16 n256, both transposed");
}
inline bool warpgroup_register_a() {
  return warpgroup_product<BFloat16, 192, true, false, true>("bf16 n192, b transposed") &&
         warpgroup_product<Float16, 64, true, false, false>("fp16 n64");
}

inline const std::vector<Check> kWarpgroupChecks = {{"warpgroup_shared_a", warpgroup_shared_a},
                                                    {"warpgroup_register_a", warpgroup_register_a}};

}  // namespace flagattn::instructions
