// What the fused ops' checks share: options, operands as large as their contents, and comparison.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "arch/ptx/convert.cuh"
#include "arch/ptx/math.cuh"
#include "arch/rows.h"
#include "arch/status.h"

namespace flagattn::fused {

// The command line: name=value.
class Options {
 public:
  Options(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      const size_t equals = argument.find('=');
      given_[argument.substr(0, equals)] = argument.substr(equals + 1);
    }
  }
  std::string text(const char* name, const char* otherwise = "") const {
    const auto found = given_.find(name);
    return found == given_.end() ? otherwise : found->second;
  }
  double number(const char* name, double otherwise = 0.0) const {
    const auto found = given_.find(name);
    return found == given_.end() ? otherwise : std::stod(found->second);
  }
  int64_t whole(const char* name, int64_t otherwise = 0) const {
    return static_cast<int64_t>(number(name, static_cast<double>(otherwise)));
  }
  DType dtype(const char* name = "dtype") const {
    const std::string given = text(name, "fp32");
    return given == "bf16" ? DType::kBFloat16 : given == "fp16" ? DType::kFloat16 : DType::kFloat32;
  }

 private:
  std::map<std::string, std::string> given_;
};

// `rows` rows of `cols` numbers, `stride` apart. Memory ends with the last number, so that AddressSanitizer sees the
// first byte behind it; it starts as NaN.
class Operand {
 public:
  Operand(DType dtype, int64_t rows, int64_t cols, int64_t stride = 0)
      : dtype(dtype), rows(rows), cols(cols), stride(stride == 0 ? cols : stride) {
    const int64_t bytes = ((rows - 1) * this->stride + cols) * size_of(dtype);
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, static_cast<size_t>(bytes)) != 0) std::abort();
    std::memset(memory, 0xff, static_cast<size_t>(bytes));
    data = memory;
  }
  ~Operand() { std::free(data); }
  Operand(const Operand&) = delete;

  void fill(std::mt19937& random, float scale = 1.0f, float shift = 0.0f) {
    std::normal_distribution<float> normal;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) set(row, col, shift + scale * normal(random));
    }
  }
  void set(int64_t row, int64_t col, float value) {
    const int64_t index = row * stride + col;
    if (dtype == DType::kFloat32) {
      static_cast<float*>(data)[index] = value;
    } else {
      const uint32_t bits =
          dtype == DType::kBFloat16 ? ptx::pack<BFloat16>(value, 0.0f) : ptx::pack<Float16>(value, 0.0f);
      static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(bits);
    }
  }
  double at(int64_t row, int64_t col) const {
    const int64_t index = row * stride + col;
    if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
    const uint32_t bits = static_cast<const uint16_t*>(data)[index];
    return dtype == DType::kBFloat16 ? ptx::unpack<BFloat16>(bits).low : ptx::unpack<Float16>(bits).low;
  }
  double unit() const {  // in the last place of 1
    return dtype == DType::kFloat32 ? 0x1p-23 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
  }
  StridedRows view() const {
    StridedRows view;
    view.data = data;
    view.sizes[0] = rows;
    view.strides[0] = stride;
    return view;
  }
  float* floats() const { return static_cast<float*>(data); }

  const DType dtype;
  const int64_t rows, cols, stride;
  void* data;
};

// Collects what went wrong.
class Verdict {
 public:
  bool ran(const Status& status) {
    if (status.ok()) return true;
    std::printf("stopped: %s\n", status.message.c_str());
    stopped_ = true;
    return false;
  }
  // |got - expected(row, col)| within `units` units in the last place of the largest number.
  template <typename Expected>
  void compare(const char* name, const Operand& got, double units, const Expected& expected) {
    double worst = 0.0, largest = 0.0;
    for (int64_t row = 0; row < got.rows; ++row) {
      for (int64_t col = 0; col < got.cols; ++col) {
        const double right = expected(row, col), error = std::fabs(got.at(row, col) - right);
        worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        largest = std::fmax(largest, std::fabs(right));
      }
    }
    const double bound = units * got.unit() * largest;
    std::printf("%s error %.3e (bound %.3e)\n", name, worst, bound);
    wrong_ = wrong_ || worst > bound;
  }
  int exit_code() const { return stopped_ ? 2 : wrong_ ? 1 : 0; }

 private:
  bool stopped_ = false, wrong_ = false;
};

}  // namespace flagattn::fused
