// Checks every word of arch/simd.h against plain C++, for the ISA level it is compiled for. Prints one line per
// failure.
#include "arch/simd.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

using namespace flagattn;
namespace isa = flagattn::FLAGATTN_ISA;
using isa::F32;
using isa::I32;

namespace {

constexpr int L = F32::kLanes;
int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED %s\n", what);
  ++failures;
}

float first(F32 x) {
  float lanes[L];
  x.store(lanes);
  for (int i = 1; i < L; ++i) expect(std::memcmp(lanes, lanes + i, 4) == 0, "all lanes alike");
  return lanes[0];
}

void check_exp2() {
  double worst = 0;
  for (double x = -125.9; x <= 127; x += 0.00137) {
    const float xf = static_cast<float>(x);
    worst = std::fmax(worst, std::fabs(first(isa::exp2(F32::set1(xf))) / std::exp2(static_cast<double>(xf)) - 1));
  }
  expect(worst < 1.9e-7, "exp2 accuracy");
  for (int n = -126; n <= 127; ++n) expect(first(isa::exp2(F32::set1(n))) == std::exp2(float(n)), "exp2 at integers");
  for (float x : {-127.0f, -1e4f, -3e38f, -INFINITY}) expect(first(isa::exp2(F32::set1(x))) == 0, "exp2 underflow");
  expect(std::isnan(first(isa::exp2(F32::set1(NAN)))), "exp2 of NaN");
}

float weight(float below, float factor) {
  F32 weights[] = {F32::set1(below), F32::set1(0.0f)};
  isa::weights_of_all(weights, F32::set1(-factor), isa::farthest_below(factor));
  expect(first(weights[1]) == 1, "the largest weight");
  return first(weights[0]);
}

void check_weights() {
  for (float factor : {4e-37f, 0.0123f, 0.18033688f, 1.0f, 77.7f, 3e37f}) {
    double worst = 0;
    for (double x = 0; x < 125.5; x += 0.0137) {
      const float below = static_cast<float>(x / factor);
      const double exact = std::exp2(-static_cast<double>(below) * factor);
      // Where products are rounded (no fused multiply-add), their error is that of the exponent.
      const double rounding = L == 4 ? x * 4.2e-8 : 0;
      worst = std::fmax(worst, std::fabs(weight(below, factor) / exact - 1) - rounding);
    }
    expect(worst < 1.9e-7, "accuracy of weights");
    for (float x : {128.0f, 1e4f, INFINITY}) expect(weight(x / factor, factor) == 0, "weights far below the maximum");
    expect(std::isnan(weight(NAN, factor)), "the weight of NaN");
  }
}

void check_exp() {
  double worst = 0;
  for (double x = -87; x <= 88; x += 0.00137) {
    const float xf = static_cast<float>(x);
    // log2(e) is rounded, and the product too where there is no fused multiply-add.
    const double rounding = std::fabs(x) * (L == 4 ? 8e-8 : 1.4e-8);
    worst =
        std::fmax(worst, std::fabs(first(isa::exp(F32::set1(xf))) / std::exp(static_cast<double>(xf)) - 1) - rounding);
  }
  expect(worst < 2.0e-7, "exp accuracy");
  for (float x : {-88.1f, -1e30f, -INFINITY}) expect(first(isa::exp(F32::set1(x))) == 0, "exp underflow");
  expect(std::isnan(first(isa::exp(F32::set1(NAN)))), "exp of NaN");
}

void check_power_of_shifted() {
  for (int m = 0; m < 256; ++m) {
    const float power = first(isa::power_of_shifted(F32::set1(0x1.8p23f + static_cast<float>(m))));
    expect(power == (m == 0 ? 0.0f : m == 255 ? INFINITY : std::exp2(static_cast<float>(m - 127))), "power_of_shifted");
  }
}

void check_tanh() {
  double worst = 0;
  for (double x = -30; x < 30; x += 0.00073) {
    const float xf = static_cast<float>(x);
    if (xf == 0) continue;
    worst = std::fmax(worst, std::fabs(first(isa::tanh(F32::set1(xf))) / std::tanh(static_cast<double>(xf)) - 1));
  }
  expect(worst < 5e-7, "tanh accuracy");
}

void check_long_integers() {
  uint32_t words[L];
  for (int i = 0; i < L; ++i) words[i] = 0xf0000000u + 0x01234567u * static_cast<uint32_t>(i);
  const isa::U64 even = isa::U64::load_even(words), odd = isa::U64::load_odd(words);
  const isa::U64 factor = isa::U64::set1(0xD2511F53u);
  const auto expect_lanes = [](I32 lanes, auto&& expected, const char* what) {
    for (int i = 0; i < L; ++i) {
      uint32_t lane[L];
      std::memcpy(lane, &lanes, sizeof(lane));
      expect(lane[i] == expected(i), what);
    }
  };
  const auto product = [&](int i) { return uint64_t{words[i]} * 0xD2511F53u; };
  const isa::U64 evens = isa::multiply_low(even, factor), odds = isa::multiply_low(odd, factor);
  expect_lanes(isa::join(even, odd), [&](int i) { return words[i]; }, "load_even, load_odd, join");
  expect_lanes(isa::join(evens, odds), [&](int i) { return static_cast<uint32_t>(product(i)); }, "multiply_low");
  expect_lanes(
      isa::join(isa::high_half(evens) ^ factor, isa::high_half(odds) ^ factor),
      [&](int i) { return static_cast<uint32_t>(product(i) >> 32) ^ 0xD2511F53u; }, "high_half, ^");
}

void check_transpose() {
  float block[L * L], row[L];
  F32 r[L];
  for (int i = 0; i < L * L; ++i) block[i] = static_cast<float>(i);
  for (int i = 0; i < L; ++i) r[i] = F32::load(block + i * L);
  isa::transpose(r);
  for (int i = 0; i < L; ++i) {
    r[i].store(row);
    for (int j = 0; j < L; ++j) expect(row[j] == block[j * L + i], "transpose");
  }
}

void check_fours() {
  constexpr int kRows = L / 4;
  float wide[L], lanes[L];
  BFloat16 bf16[L];
  Float16 fp16[L];
  const float* wide_rows[kRows];
  const BFloat16* bf16_rows[kRows];
  const Float16* fp16_rows[kRows];
  for (int i = 0; i < L; ++i) {
    wide[i] = static_cast<float>(i + 1);
    isa::F32::set1(wide[i]).store_n(bf16 + i, 1);
    isa::F32::set1(wide[i]).store_n(fp16 + i, 1);
  }
  for (int r = 0; r < kRows; ++r) {  // in reverse
    const int at = 4 * (kRows - 1 - r);
    wide_rows[r] = wide + at, bf16_rows[r] = bf16 + at, fp16_rows[r] = fp16 + at;
  }
  const F32 loaded[] = {isa::load_fours(wide_rows), isa::load_fours(bf16_rows), isa::load_fours(fp16_rows)};
  for (const F32& fours : loaded) {
    fours.store(lanes);
    for (int i = 0; i < L; ++i) expect(lanes[i] == wide[4 * (kRows - 1 - i / 4) + i % 4], "load_fours");
    isa::spread_in_fours<2>(fours).store(lanes);
    for (int i = 0; i < L; ++i) expect(lanes[i] == wide[4 * (kRows - 1 - i / 4) + 2], "spread_in_fours");
  }
}

void check_partial_access() {
  float source[L + 1], target[L + 1];
  for (int i = 0; i <= L; ++i) source[i] = static_cast<float>(i + 1);
  for (int n = 0; n <= L; ++n) {
    float loaded[L];
    F32::load_n(source, n).store(loaded);
    for (int i = 0; i < L; ++i) expect(loaded[i] == (i < n ? source[i] : 0), "load_n fp32");
    for (float& x : target) x = -1;
    F32::set1(2).store_n(target, n);
    for (int i = 0; i <= L; ++i) expect(target[i] == (i < n ? 2 : -1), "store_n fp32");

    BFloat16 halves[L + 1], written[L + 1];
    for (int i = 0; i <= L; ++i) halves[i].bits = 0x3f80, written[i].bits = 0x1234;
    F32::load_n(halves, n).store(loaded);
    for (int i = 0; i < L; ++i) expect(loaded[i] == (i < n ? 1 : 0), "load_n bf16");
    F32::set1(1).store_n(written, n);
    for (int i = 0; i <= L; ++i) expect(written[i].bits == (i < n ? 0x3f80 : 0x1234), "store_n bf16");
  }
}

void check_halves() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    Float16 half[L], back[L];
    for (Float16& x : half) x.bits = static_cast<uint16_t>(bits);
    _Float16 expected;
    std::memcpy(&expected, half, 2);
    const float wide = first(F32::load(half));
    const bool is_nan = expected != expected;
    expect(is_nan ? std::isnan(wide) : wide == static_cast<float>(expected), "fp16 to fp32");
    F32::load(half).store(back);
    expect(is_nan ? (back[0].bits & 0x7fff) > 0x7c00 : back[L - 1].bits == bits, "fp16 round trip");
  }
  std::srand(1);
  for (int n = 0; n < 300000; ++n) {
    const uint32_t bits = (static_cast<uint32_t>(std::rand()) * 2654435761u) ^ static_cast<uint32_t>(std::rand());
    float x;
    std::memcpy(&x, &bits, 4);
    Float16 half[L];
    BFloat16 brain[L];
    F32::set1(x).store(half);
    F32::set1(x).store(brain);
    if (x != x) {
      expect((half[0].bits & 0x7fff) > 0x7c00 && (brain[0].bits & 0x7fff) > 0x7f80, "NaN stays NaN");
      continue;
    }
    const _Float16 expected = static_cast<_Float16>(x);
    expect(std::memcmp(&expected, half + L - 1, 2) == 0, "fp32 to fp16");
    expect(brain[L - 1].bits == (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, "fp32 to bf16");
  }
}

void check_arithmetic() {
  float values[L];
  for (int i = 0; i < L; ++i) values[i] = static_cast<float>(i) - 2.5f;
  const F32 x = F32::load(values), half = F32::set1(0.5f);
  float sum = 0;
  for (float v : values) sum += v;
  expect(x.sum() == sum, "sum");
  expect(x.hmax() == values[L - 1], "hmax");
  const auto each = [&](F32 got, auto want, const char* what) {
    float lanes[L];
    got.store(lanes);
    for (int i = 0; i < L; ++i) expect(lanes[i] == want(values[i]), what);
  };
  each(x + half, [](float v) { return v + 0.5f; }, "+");
  each(x - half, [](float v) { return v - 0.5f; }, "-");
  each(x * half, [](float v) { return v * 0.5f; }, "*");
  each(x / half, [](float v) { return v / 0.5f; }, "/");
  each(isa::fma(x, half, x), [](float v) { return v * 1.5f; }, "fma");
  each(isa::fms(x, half, x), [](float v) { return v * -0.5f; }, "fms");
  each(isa::max(x, half), [](float v) { return v > 0.5f ? v : 0.5f; }, "max");
  each(isa::min(x, half), [](float v) { return v < 0.5f ? v : 0.5f; }, "min");
  each(isa::abs(x), [](float v) { return std::fabs(v); }, "abs");
  each(isa::sqrt(isa::abs(x)), [](float v) { return std::sqrt(std::fabs(v)); }, "sqrt");
  float swapped[L];
  isa::swap_neighbours(x).store(swapped);
  for (int i = 0; i < L; ++i) expect(swapped[i] == values[i ^ 1], "swap_neighbours");
  each(isa::select(x < half, x, half), [](float v) { return v < 0.5f ? v : 0.5f; }, "select <");
  each(isa::select(x > half, x, half), [](float v) { return v > 0.5f ? v : 0.5f; }, "select >");
  each(isa::select(x == half, half, x), [](float v) { return v; }, "select ==");
  for (int n = 0; n <= L; ++n) {
    const isa::Mask m = isa::first_n(n);
    expect(isa::any(m) == (n > 0) && isa::all(m) == (n == L), "any, all");
    each(isa::select(m & (x < F32::set1(-2)), half, x), [&](float v) { return v < -2 && n > 0 ? 0.5f : v; }, "&");
    each(isa::select(m | (I32::iota() > I32::set1(-1)), half, x), [](float) { return 0.5f; }, "|");
  }
}

}  // namespace

int main() {
  check_exp2();
  check_weights();
  check_exp();
  check_power_of_shifted();
  check_long_integers();
  check_tanh();
  check_transpose();
  check_fours();
  check_partial_access();
  check_halves();
  check_arithmetic();
  std::printf("%d lanes, %d failures\n", L, failures);
  return failures != 0;
}
