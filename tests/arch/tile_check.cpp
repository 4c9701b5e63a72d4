// The tiles' wrapper against loops of the documented arithmetic, bit for bit: on the host's tiles, and on their twin.
#include "arch/simd/tiles.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#if !defined(TILE_TWIN)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace flagattn;
using namespace flagattn::FLAGATTN_ISA;

namespace {

int failures = 0;
void expect(bool holds, const char* what) {
  if (!holds) {
    std::printf("%s\n", what);
    ++failures;
  }
}

float wide(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

using Halves = std::vector<uint16_t>;
Halves random_halves(int count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Halves halves(static_cast<size_t>(count));
  for (uint16_t& half : halves) {
    const float x = normal(generator) * std::exp2(static_cast<float>(generator() % 60) - 30.0f);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    half = static_cast<uint16_t>(bits >> 16);
  }
  return halves;
}
const BFloat16* bf16(const Halves& halves) { return reinterpret_cast<const BFloat16*>(halves.data()); }

// B rows from [32][columns] halves.
Halves pairs_of(const Halves& matrix, int columns) {
  Halves pairs(matrix.size());
  for (int k = 0; k < 32; ++k) {
    for (int n = 0; n < columns; ++n)
      pairs[static_cast<size_t>(k / 2 * 2 * columns + 2 * n + k % 2)] = matrix[static_cast<size_t>(k * columns + n)];
  }
  return pairs;
}

void check_product(int rows) {
  const Halves a = random_halves(16 * 32, 1), b = random_halves(32 * 16, 2);
  const Halves b_pairs = pairs_of(b, 16);
  float sums[16][16], expected[16][16];
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) sums[m][n] = expected[m][n] = static_cast<float>(m - n) * 0.37f;
  }
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < 16; ++n) {
      float parts[2] = {0.0f, 0.0f};
      for (int k = 0; k < 32; ++k) {
        parts[k % 2] =
            std::fma(wide(a[static_cast<size_t>(m * 32 + k)]), wide(b[static_cast<size_t>(k * 16 + n)]), parts[k % 2]);
      }
      expected[m][n] += parts[0] + parts[1];
    }
  }
  {
    const TileScope scope(0b101, rows);
    Tile<0>::load(&sums[0][0], 16);
    Tile<2>::load(bf16(a), 32);
    Tile<7>::load(bf16(b_pairs), 32);
    Tile<0>::add_product<2, 7>();
    Tile<0>::store(&sums[0][0], 16);
  }
  expect(std::memcmp(sums, expected, sizeof(sums)) == 0, "a product differs from the documented arithmetic");
}

// C^T = B^T A^T has the same bits.
void check_transposed_product() {
  const Halves a = random_halves(16 * 32, 3), b = random_halves(32 * 16, 4);
  Halves a_transposed(a.size()), b_transposed(b.size());
  for (size_t k = 0; k < 32; ++k) {
    for (size_t i = 0; i < 16; ++i) a_transposed[k * 16 + i] = a[i * 32 + k], b_transposed[i * 32 + k] = b[k * 16 + i];
  }
  const Halves b_pairs = pairs_of(b, 16), a_pairs = pairs_of(a_transposed, 16);
  float c[16][16], transposed[16][16];
  {
    const TileScope scope;
    Tile<0>::zero();
    Tile<1>::zero();
    Tile<2>::load(bf16(a), 32);
    Tile<3>::load(bf16(b_pairs), 32);
    Tile<4>::load(bf16(b_transposed), 32);
    Tile<5>::load(bf16(a_pairs), 32);
    Tile<0>::add_product<2, 3>();
    Tile<1>::add_product<4, 5>();
    Tile<0>::store(&c[0][0], 16);
    Tile<1>::store(&transposed[0][0], 16);
  }
  bool same = true;
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) same = same && c[m][n] == transposed[n][m];
  }
  expect(same, "a transposed product has other bits");
}

void check_pairs() {
  const Halves even = random_halves(32, 5), odd = random_halves(32, 6);
  Halves first(32), second(32);
  store_interleaved(bf16(even), bf16(odd), reinterpret_cast<BFloat16*>(first.data()),
                    reinterpret_cast<BFloat16*>(second.data()));
  bool same = true;
  for (size_t n = 0; n < 16; ++n) {
    same = same && first[2 * n] == even[n] && first[2 * n + 1] == odd[n] && second[2 * n] == even[16 + n] &&
           second[2 * n + 1] == odd[16 + n];
  }
  expect(same, "rows are not interleaved");

  alignas(64) float x[16], y[16];
  for (int i = 0; i < 16; ++i)
    x[i] = std::exp2(static_cast<float>(-i)) * 1.2345f, y[i] = -1.00390625f * static_cast<float>(i + 1);
  x[3] = NAN, x[4] = INFINITY, x[5] = 1e-39f;
  BFloat16 expected_even[16], expected_odd[16];
  store_pairs(F32::load(x), F32::load(y), reinterpret_cast<BFloat16*>(first.data()));
  x[5] = 0.0f;
  F32::load(x).store(expected_even);
  F32::load(y).store(expected_odd);
  same = true;
  for (size_t n = 0; n < 16; ++n) {
    same = same && std::memcmp(&first[2 * n], expected_even + n, 2) == 0 &&
           std::memcmp(&first[2 * n + 1], expected_odd + n, 2) == 0;
  }
  expect(same, "pairs are rounded in another way than vectors");
}

void check_scopes() {
  const Halves a = random_halves(16 * 32, 7), b = random_halves(16 * 32, 8);
  float before[16][16], after[16][16];
  const TileScope outer;
  const auto product = [&](float* to) {
    Tile<0>::zero();
    Tile<1>::load(bf16(a), 32);
    Tile<2>::load(bf16(b), 32);
    Tile<0>::add_product<1, 2>();
    Tile<0>::store(to, 16);
  };
  product(&before[0][0]);
  {
    const TileScope inner(0xff, 3);
  }
  product(&after[0][0]);
  expect(std::memcmp(before, after, sizeof(before)) == 0, "what was configured before is not configured again");
}

}  // namespace

int main() {
#if !defined(TILE_TWIN)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) {
    std::printf("the system grants no tiles\n");
    return 0;
  }
#endif
  check_product(16);
  check_product(5);
  check_transposed_product();
  check_pairs();
  check_scopes();
  return failures;
}
