// Matrices between shared memory and registers, and their products. Operands are small integers, exact in every format.
#pragma once

#include "arch/ptx/copy.cuh"
#include "arch/ptx/matrix.cuh"
#include "arch/ptx/matrix_product.cuh"
#include "arch/ptx/warp.cuh"
#include "tests/host_exec/instructions/warp.cuh"

namespace flagattn::instructions {

// Element (row, column) of matrix `matrix` lies in shared memory as 64 matrix + 8 row + column.
FLAGATTN_DEVICE void fill_matrices(Shared& shared, int lane) {
  for (int i = lane; i < 128; i += 32) {
    shared.words[i] = static_cast<uint32_t>(2 * i) | static_cast<uint32_t>(2 * i + 1) << 16;
  }
  ptx::sync_warp();
}

FLAGATTN_KERNEL(32, 1) load_matrices_kernel(FLAGATTN_KERNEL_ARGUMENT WordsArguments arguments) {
  auto& shared = ptx::shared_storage<Shared>();
  const int lane = ptx::thread_index();
  fill_matrices(shared, lane);
  const ptx::SharedAddress row = ptx::shared_address(shared.words) + 16 * lane;
  uint32_t four[4], two[2], one[1];
  uint32_t* out = arguments.out + lane;
  ptx::ldmatrix_x4(four, row);
  for (int i = 0; i < 4; ++i) out[32 * i] = four[i];
  ptx::ldmatrix_x4_trans(four, row);
  for (int i = 0; i < 4; ++i) out[32 * (4 + i)] = four[i];
  ptx::ldmatrix_x2(two, row);
  for (int i = 0; i < 2; ++i) out[32 * (8 + i)] = two[i];
  ptx::ldmatrix_x2_trans(two, row);
  for (int i = 0; i < 2; ++i) out[32 * (10 + i)] = two[i];
  ptx::ldmatrix_x1(one, row);
  out[32 * 12] = one[0];
  ptx::ldmatrix_x1_trans(one, row);
  out[32 * 13] = one[0];
}

// What a lane holds of matrix `matrix`.
inline uint32_t matrix_pair(int matrix, int lane, bool transpose) {
  const int row = lane / 4, column = 2 * (lane % 4);
  const int low = transpose ? 8 * column + row : 8 * row + column, high = low + (transpose ? 8 : 1);
  return static_cast<uint32_t>(64 * matrix + low) | static_cast<uint32_t>(64 * matrix + high) << 16;
}

inline bool matrix_loads() {
  Buffer<uint32_t> out(14 * 32);
  if (!run(load_matrices_kernel, 1, 32, {out.device()})) return false;
  out.fetch();
  return equal("ldmatrix", out.data, [](int i) {
    const int matrices[] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 1, 0, 0};
    const bool transposed[] = {false, false, false, false, true, true,  true,
                               true,  false, false, true,  true, false, true};
    return matrix_pair(matrices[i / 32], i % 32, transposed[i / 32]);
  });
}

// ---- Products: a is 16 x K, b is K x 8 in global memory, one byte of value per element, in [-3, 3].

struct ProductArguments {
  const int8_t* a;
  const int8_t* b;
  float* d;
};

// The bits of a small integer in the format.
template <typename Element>
FLAGATTN_HOST_DEVICE inline uint32_t bits_of(int value) {
  const uint32_t size = static_cast<uint32_t>(value < 0 ? -value : value), negative = value < 0 ? 1 : 0;
  const uint32_t exponent = size >= 2 ? 1 : 0;  // of 1, 2, 3
  const uint32_t half = size == 3 ? 1 : 0;      // the first bit of the fraction
  const auto number = [&](uint32_t bias, int fraction_bits, int bits) {
    return size == 0 ? 0 : negative << (bits - 1) | (exponent + bias) << fraction_bits | half << (fraction_bits - 1);
  };
  if constexpr (std::is_same_v<Element, BFloat16>) return number(127, 7, 16);
  if constexpr (std::is_same_v<Element, Float16>) return number(15, 10, 16);
  if constexpr (std::is_same_v<Element, Float8E4M3>) return number(7, 3, 8);
  if constexpr (std::is_same_v<Element, Float8E5M2>) return number(15, 2, 8);
  return static_cast<uint32_t>(value) & 0xff;
}

template <typename A, typename B, int kK>
FLAGATTN_KERNEL(32, 1)
product_kernel(FLAGATTN_KERNEL_ARGUMENT ProductArguments arguments) {
  constexpr int kPer = 4 / sizeof(A), kRegistersB = kK / kPer / 4;
  const int lane = ptx::thread_index(), group = lane / 4, t = lane % 4;
  uint32_t a[2 * kRegistersB], b[kRegistersB];
  for (int r = 0; r < 2 * kRegistersB; ++r) {
    a[r] = 0;
    for (int e = 0; e < kPer; ++e) {
      const int row = group + 8 * (r % 2), k = kPer * t + e + 4 * kPer * (r / 2);
      a[r] |= bits_of<A>(arguments.a[row * kK + k]) << (32 / kPer * e);
    }
  }
  for (int r = 0; r < kRegistersB; ++r) {
    b[r] = 0;
    for (int e = 0; e < kPer; ++e) {
      const int k = kPer * t + e + 4 * kPer * r;
      b[r] |= bits_of<B>(arguments.b[k * 8 + group]) << (32 / kPer * e);
    }
  }
  using Number = std::conditional_t<ptx::kIsByte<A>, int32_t, float>;
  Number d[4];
  for (int i = 0; i < 4; ++i) d[i] = static_cast<Number>(i);
  if constexpr (kPer == 2 && kK == 16) ptx::mma_m16n8k16<A>(d, a, b);
  if constexpr (kPer == 2 && kK == 8) ptx::mma_m16n8k8<A>(d, a, b);
  if constexpr (kPer == 4 && kK == 32) ptx::mma_m16n8k32<A, B>(d, a, b);
  if constexpr (kPer == 4 && kK == 16) ptx::mma_m16n8k16<A, B>(d, a, b);
  for (int i = 0; i < 4; ++i) {
    arguments.d[(group + 8 * (i / 2)) * 8 + 2 * t + i % 2] = static_cast<float>(d[i] - static_cast<Number>(i));
  }
}

template <typename A, typename B, int kK>
bool product(const char* name) {
  Buffer<int8_t> a(16 * kK), b(kK * 8);
  Buffer<float> d(16 * 8);
  for (int i = 0; i < 16 * kK; ++i) {
    a.data[i] = static_cast<int8_t>(std::is_same_v<A, uint8_t> ? i * 5 % 4 : (i * 37 + i / 7) % 7 - 3);
  }
  for (int i = 0; i < 8 * kK; ++i) {
    b.data[i] = static_cast<int8_t>(std::is_same_v<B, uint8_t> ? i / 3 % 4 : (i * 23 + i / 5) % 7 - 3);
  }
  if (!run(product_kernel<A, B, kK>, 1, 32, {a.device(), b.device(), d.device()})) return false;
  d.fetch();
  return equal(name, d.data, [&](int i) {
    int sum = 0;
    for (int k = 0; k < kK; ++k) sum += a.data[i / 8 * kK + k] * b.data[k * 8 + i % 8];
    return static_cast<float>(sum);
  });
}

inline bool products_16_bit() {
  return product<BFloat16, BFloat16, 16>("bf16 k16") && product<BFloat16, BFloat16, 8>("bf16 k8") &&
         product<Float16, Float16, 16>("fp16 k16") && product<Float16, Float16, 8>("fp16 k8");
}
inline bool products_int8() {
  return product<int8_t, int8_t, 32>("s8 s8 k32") && product<int8_t, uint8_t, 32>("s8 u8 k32") &&
         product<uint8_t, int8_t, 32>("u8 s8 k32") && product<uint8_t, uint8_t, 32>("u8 u8 k32") &&
         product<int8_t, int8_t, 16>("s8 s8 k16") && product<int8_t, uint8_t, 16>("s8 u8 k16") &&
         product<uint8_t, int8_t, 16>("u8 s8 k16") && product<uint8_t, uint8_t, 16>("u8 u8 k16");
}
inline const std::vector<Check> kMatrixChecks = {
    {"matrix_loads", matrix_loads}, {"products_16_bit", products_16_bit}, {"products_int8", products_int8}};

}  // namespace flagattn::instructions
