// The lane maps of csrc/host_exec/matrix.h against CuTe's traits, an independent statement of what the hardware does.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/tensor.hpp>

#include "host_exec/matrix.h"

using flagattn::host_exec::Place;

namespace {

int wrong = 0;

void report(const char* name, int differing, int all) {
  std::printf("%s: %d of %d differ\n", name, differing, all);
  wrong += differing;
}

// A trait's layout gives row + rows * column of the element that `lane` holds at `index`.
template <typename Layout>
void compare_fragment(const char* name, Layout layout, int values, int rows, Place (*place)(int, int)) {
  int differing = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int index = 0; index < values; ++index) {
      const Place p = place(lane, index);
      differing += static_cast<int>(layout(lane, index)) != p.row + rows * p.column;
    }
  }
  report(name, differing, 32 * values);
}

// A copy trait's layout gives, in bits, where in the 32 rows of 128 bits a lane's bit comes from.
template <typename Layout>
void compare_load(const char* name, Layout layout, bool transpose) {
  int differing = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int e = 0; e < 2; ++e) {
        const Place p = flagattn::host_exec::place_in_8x8(lane, e);
        const int row = transpose ? p.column : p.row, column = transpose ? p.row : p.column;
        differing += static_cast<int>(layout(lane, 32 * matrix + 16 * e)) != (8 * matrix + row) * 128 + column * 16;
      }
    }
  }
  report(name, differing, 32 * 8);
}

}  // namespace

int main() {
  using namespace cute;
  namespace he = flagattn::host_exec;
  using Bf16 = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;
  using Fp16 = MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>;
  compare_fragment("mma bf16 a", Bf16::ALayout{}, 8, 16, [](int l, int i) { return he::place_in_a(l, i); });
  compare_fragment("mma fp16 a", Fp16::ALayout{}, 8, 16, [](int l, int i) { return he::place_in_a(l, i); });
  compare_fragment("mma b", Bf16::BLayout{}, 4, 8, [](int l, int i) {
    const Place p = he::place_in_b(l, i);
    return Place{p.column, p.row};  // CuTe's b is (n, k)
  });
  compare_fragment("mma d", Bf16::CLayout{}, 4, 16, [](int l, int i) { return he::place_in_d(l, i); });
  compare_load("ldmatrix", Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{}, false);
  compare_load("ldmatrix.trans", Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{}, true);
  return wrong != 0;
}
