// The runner's maps of lanes, swizzles and descriptors (csrc/host_exec/matrix.h, csrc/arch/tensor_map.h,
// csrc/arch/matrix_descriptor.h) against CuTe's traits, an independent statement of what the hardware does.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm89.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include "arch/matrix_descriptor.h"
#include "host_exec/matrix.h"

namespace {

namespace he = flagattn::host_exec;

using he::Place;

int wrong = 0;

void report(const char* name, int differing, int all) {
  std::printf("%s: %d of %d differ\n", name, differing, all);
  wrong += differing;
}

// A trait's layout gives row + rows * column of the element that `lane` holds at `index`.
template <typename Layout, typename Map>
void compare_fragment(const char* name, Layout layout, int lanes, int values, int rows, const Map& place) {
  int differing = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    for (int index = 0; index < values; ++index) {
      const Place p = place(lane, index);
      differing += static_cast<int>(layout(lane, index)) != p.row + rows * p.column;
    }
  }
  report(name, differing, lanes * values);
}

// The operands of one mma.sync over `k` elements of `bytes` bytes.
template <typename Operation>
void compare_product(const char* name, int k, int bytes) {
  using Traits = cute::MMA_Traits<Operation>;
  std::printf("%s: ", name);
  compare_fragment("a", typename Traits::ALayout{}, 32, 16 * k / 32, 16,
                   [&](int lane, int i) { return he::place_in_a(lane, i, bytes); });
  std::printf("%s: ", name);
  compare_fragment("b", typename Traits::BLayout{}, 32, 8 * k / 32, 8, [&](int lane, int i) {
    const Place p = he::place_in_b(lane, i, bytes);
    return Place{p.column, p.row};  // CuTe's b is (n, k)
  });
  std::printf("%s: ", name);
  compare_fragment("d", typename Traits::CLayout{}, 32, 4, 16, [](int lane, int i) { return he::place_in_d(lane, i); });
}

// A copy trait's layout gives, in bits, where in the rows of 128 bits a lane's bit comes from or goes to.
template <typename Layout>
void compare_move(const char* name, Layout layout, int matrices, bool transpose) {
  int differing = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < matrices; ++matrix) {
      for (int e = 0; e < 2; ++e) {
        const Place p = he::place_in_8x8(lane, e);
        const int row = transpose ? p.column : p.row, column = transpose ? p.row : p.column;
        differing += static_cast<int>(layout(lane, 32 * matrix + 16 * e)) != (8 * matrix + row) * 128 + column * 16;
      }
    }
  }
  report(name, differing, 64 * matrices);
}

template <typename CuteSwizzle>
void compare_swizzle(const char* name, CuteSwizzle swizzle, flagattn::Swizzle ours) {
  int differing = 0;
  for (uint32_t address = 0; address < 1 << 14; ++address) {
    differing += swizzle(static_cast<int>(address)) != static_cast<int>(flagattn::swizzled(address, ours));
  }
  report(name, differing, 1 << 14);
}

// Of CuTe's own layouts of a 128 x 128 operand: where CuTe puts each element, and what its descriptors say.
alignas(1024) unsigned char shared[1 << 16];
template <cute::SM90::GMMA::Major kMajor, typename Atom, typename Order>
void compare_descriptor(const char* name, Atom atom, Order order) {
  using namespace cute;
  using Element = cutlass::bfloat16_t;
  constexpr bool kKMajor = kMajor == SM90::GMMA::Major::K;
  auto operand =
      make_tensor(make_smem_ptr(reinterpret_cast<Element*>(shared)), tile_to_shape(atom, Shape<_128, _128>{}, order));
  int differing = 0;
  for (int step = 0; step < 8; ++step) {
    auto part = local_tile(operand, Shape<_128, _16>{}, make_coord(0, step));
    const auto offset_of = [&](const Element* element) {
      return static_cast<uint32_t>(reinterpret_cast<const unsigned char*>(element) - shared);
    };
    auto descriptor = flagattn::descriptor_of(SM90::GMMA::make_gmma_desc<kMajor>(part).desc_);
    descriptor.start = 0x400 + offset_of(raw_pointer_cast(part.data()));
    differing += flagattn::descriptor_of(flagattn::descriptor_bits(descriptor)).start != descriptor.start;
    for (int row = 0; row < 128; ++row) {
      for (int k = 0; k < 16; ++k) {
        differing += flagattn::address_in_operand(descriptor, row, k, kKMajor) != 0x400 + offset_of(&part(row, k));
      }
    }
  }
  report(name, differing, 8 * 128 * 16);
}

void compare_warpgroup() {
  using namespace cute::SM90::GMMA;
  using cute::_1;
  using cute::_2;
  using cute::Step;
  using T = cutlass::bfloat16_t;
  compare_fragment("wgmma a in registers", ALayout_64x16{}, 128, 8, 64, [](int thread, int i) {
    const Place p = he::place_in_a(thread % 32, i, 2);
    return Place{thread / 32 * 16 + p.row, p.column};
  });
  const auto d = [](int thread, int i) {
    const Place p = he::place_in_warpgroup_d(thread % 32, i);
    return Place{thread / 32 * 16 + p.row, p.column};
  };
  compare_fragment("wgmma d 64 x 64", CLayout_64x64{}, 128, 32, 64, d);
  compare_fragment("wgmma d 64 x 256", CLayout_64x256{}, 128, 128, 64, d);
  compare_descriptor<Major::K>("K-major 128", Layout_K_SW128_Atom<T>{}, Step<_1, _2>{});
  compare_descriptor<Major::K>("K-major 128, other order", Layout_K_SW128_Atom<T>{}, Step<_2, _1>{});
  compare_descriptor<Major::K>("K-major 64", Layout_K_SW64_Atom<T>{}, Step<_1, _2>{});
  compare_descriptor<Major::K>("K-major 32", Layout_K_SW32_Atom<T>{}, Step<_1, _2>{});
  compare_descriptor<Major::K>("K-major", Layout_K_INTER_Atom<T>{}, Step<_1, _2>{});
  compare_descriptor<Major::MN>("transposed 128", Layout_MN_SW128_Atom<T>{}, Step<_1, _2>{});
  compare_descriptor<Major::MN>("transposed 128, other order", Layout_MN_SW128_Atom<T>{}, Step<_2, _1>{});
  compare_descriptor<Major::MN>("transposed 64", Layout_MN_SW64_Atom<T>{}, Step<_1, _2>{});
  compare_descriptor<Major::MN>("transposed 32", Layout_MN_SW32_Atom<T>{}, Step<_2, _1>{});
  compare_descriptor<Major::MN>("transposed", Layout_MN_INTER_Atom<T>{}, Step<_1, _2>{});
}

}  // namespace

int main() {
  using namespace cute;
  compare_product<SM80_16x8x16_F32BF16BF16F32_TN>("bf16 k16", 16, 2);
  compare_product<SM80_16x8x16_F32F16F16F32_TN>("fp16 k16", 16, 2);
  compare_product<SM80_16x8x8_F32BF16BF16F32_TN>("bf16 k8", 8, 2);
  compare_product<SM80_16x8x8_F32F16F16F32_TN>("fp16 k8", 8, 2);
  compare_product<SM80_16x8x16_S32S8S8S32_TN>("int8 k16", 16, 1);
  compare_product<SM80_16x8x32_S32S8S8S32_TN>("int8 k32", 32, 1);
  compare_product<SM89_16x8x32_F32E4M3E4M3F32_TN>("float8 k32", 32, 1);
  compare_move("ldmatrix.x1", Copy_Traits<SM75_U32x1_LDSM_N>::DstLayout{}, 1, false);
  compare_move("ldmatrix.x2", Copy_Traits<SM75_U32x2_LDSM_N>::DstLayout{}, 2, false);
  compare_move("ldmatrix.x4", Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{}, 4, false);
  compare_move("ldmatrix.x1.trans", Copy_Traits<SM75_U16x2_LDSM_T>::DstLayout{}, 1, true);
  compare_move("ldmatrix.x2.trans", Copy_Traits<SM75_U16x4_LDSM_T>::DstLayout{}, 2, true);
  compare_move("ldmatrix.x4.trans", Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{}, 4, true);
  compare_move("stmatrix.x1", Copy_Traits<SM90_U32x1_STSM_N>::SrcLayout{}, 1, false);
  compare_move("stmatrix.x2", Copy_Traits<SM90_U32x2_STSM_N>::SrcLayout{}, 2, false);
  compare_move("stmatrix.x4", Copy_Traits<SM90_U32x4_STSM_N>::SrcLayout{}, 4, false);
  compare_move("stmatrix.x1.trans", Copy_Traits<SM90_U16x2_STSM_T>::SrcLayout{}, 1, true);
  compare_move("stmatrix.x2.trans", Copy_Traits<SM90_U16x4_STSM_T>::SrcLayout{}, 2, true);
  compare_move("stmatrix.x4.trans", Copy_Traits<SM90_U16x8_STSM_T>::SrcLayout{}, 4, true);
  compare_swizzle("swizzle 32", cute::Swizzle<1, 4, 3>{}, flagattn::Swizzle::k32);
  compare_swizzle("swizzle 64", cute::Swizzle<2, 4, 3>{}, flagattn::Swizzle::k64);
  compare_swizzle("swizzle 128", cute::Swizzle<3, 4, 3>{}, flagattn::Swizzle::k128);
  compare_warpgroup();
  return wrong != 0;
}
