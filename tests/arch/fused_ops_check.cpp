// Runs the row-wise kernels (norm, activation, rotary) of the ISA level it is compiled for against loops in double.
// Prints one line per failure.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "activation/cpu/activation_isa.cpp"
#include "norm/cpu/norm_isa.cpp"
#include "rotary/cpu/rotary_isa.cpp"

using namespace flagattn;
namespace isa = flagattn::FLAGATTN_ISA;

namespace {

int failures = 0;

// fp32 or bfloat16 elements, and their values as doubles. 64-byte aligned, as torch's are.
struct Buffer {
  DType dtype;
  int64_t size;
  void* data;
  Buffer(DType dtype, int64_t size)
      : dtype(dtype), size(size), data(std::aligned_alloc(64, (size * 4 + 127) / 64 * 64)) {
    for (int64_t i = 0; i < size; ++i)
      set(i, 4.0f * static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 2);
  }
  ~Buffer() { std::free(data); }
  void set(int64_t i, float x) {
    if (dtype == DType::kFloat32) static_cast<float*>(data)[i] = x;
    if (dtype == DType::kBFloat16) static_cast<BFloat16*>(data)[i].bits = __builtin_bit_cast(uint32_t, x) >> 16;
  }
  double operator[](int64_t i) const {
    if (dtype == DType::kFloat32) return static_cast<float*>(data)[i];
    return __builtin_bit_cast(float, static_cast<uint32_t>(static_cast<BFloat16*>(data)[i].bits) << 16);
  }
  StridedRows rows(int64_t cols) const {
    StridedRows view;
    view.data = data;
    view.strides[0] = cols;
    return view;
  }
};

void expect_near(double got, double want, DType dtype, const char* what, int64_t cols, int64_t i) {
  const double tolerance = dtype == DType::kFloat32 ? 1e-5 : 1e-2;
  if (std::fabs(got - want) <= tolerance * (1 + std::fabs(want))) return;
  if (++failures < 50)
    std::printf("FAILED %s, %d columns, element %d: %g, not %g\n", what, int(cols), int(i), got, want);
}

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

void check_swiglu(DType dtype, int64_t n, bool stream) {
  Buffer dy(dtype, n), gate(dtype, n), up(dtype, n), y(dtype, n), dgate(dtype, n), dup(dtype, n);
  isa::swiglu_kernels.forward(dtype, gate.data, up.data, y.data, n, stream);
  isa::swiglu_kernels.backward(dtype, dy.data, gate.data, up.data, dgate.data, dup.data, n, stream);
  for (int64_t i = 0; i < n; ++i) {
    const double p = sigmoid(gate[i]);
    expect_near(y[i], gate[i] * p * up[i], dtype, "swiglu", n, i);
    expect_near(dup[i], dy[i] * gate[i] * p, dtype, "swiglu dup", n, i);
    expect_near(dgate[i], dy[i] * up[i] * p * (1 + gate[i] * (1 - p)), dtype, "swiglu dgate", n, i);
  }
}

void check_norm(DType dtype, int64_t cols, bool stream) {
  const int64_t rows = 3, n = rows * cols;
  const double eps = 1e-3, offset = 0.5;
  Buffer x(dtype, n), residual(dtype, n), dy(dtype, n), y(dtype, n), summed(dtype, n), ds(dtype, n);
  Buffer weight(DType::kFloat32, cols), dweight(DType::kBFloat16, cols);
  std::vector<float> rstd(rows), gain(padded_columns(cols)), partials(2 * padded_columns(cols));
  const RmsNormKernels& kernels = isa::rms_norm_kernels;
  kernels.load_gain(weight.data, DType::kFloat32, offset, cols, dtype, gain.data());

  RmsNormParams forward;
  forward.dtype = dtype;
  forward.rows = rows;
  forward.cols = cols;
  forward.x = x.rows(cols);
  forward.residual = residual.rows(cols);
  forward.eps = eps;
  forward.y = y.data;
  forward.summed = summed.data;
  forward.rstd = rstd.data();
  kernels.forward_rows(forward, gain.data(), 0, rows, stream);

  RmsNormBackwardParams backward;
  backward.dtype = dtype;
  backward.rows = rows;
  backward.cols = cols;
  backward.dy = dy.rows(cols);
  backward.s = summed.rows(cols);
  backward.dsummed = x.rows(cols);
  backward.rstd = rstd.data();
  backward.ds = ds.data;
  kernels.backward_rows(backward, gain.data(), 0, 2, partials.data(), stream);
  kernels.backward_rows(backward, gain.data(), 2, 3, partials.data() + padded_columns(cols), stream);
  kernels.reduce_dweight(partials.data(), 2, cols, 0, cols, dtype, DType::kBFloat16, dweight.data);

  std::vector<double> dweight_want(cols);
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0, projection = 0;
    for (int64_t j = 0; j < cols; ++j) squares += summed[r * cols + j] * summed[r * cols + j];
    const double scale = 1 / std::sqrt(squares / cols + eps);
    const auto gradient = [&](int64_t j) { return dy[r * cols + j] * (weight[j] + offset); };
    for (int64_t j = 0; j < cols; ++j) projection += gradient(j) * summed[r * cols + j] * scale / cols;
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t i = r * cols + j;
      const double normalised = summed[i] * scale;
      expect_near(summed[i], x[i] + residual[i], dtype, "x + residual", cols, i);
      expect_near(y[i], normalised * (weight[j] + offset), dtype, "rms_norm", cols, i);
      expect_near(ds[i], scale * (gradient(j) - normalised * projection) + x[i], dtype, "rms_norm ds", cols, i);
      dweight_want[j] += dy[i] * normalised;
    }
  }
  for (int64_t j = 0; j < cols; ++j) expect_near(dweight[j], dweight_want[j], DType::kBFloat16, "dweight", cols, j);
}

void check_rotary(DType dtype, int64_t half_dim, bool interleaved) {
  const int64_t heads = 2, head_dim = 2 * half_dim + (half_dim % 32 == 0 ? 0 : 3);  // without a rest: streamed
  Buffer x(dtype, heads * head_dim), y(dtype, heads * head_dim), cos(dtype, half_dim), sin(dtype, half_dim);
  RotaryParams params;
  params.dtype = params.table_dtype = dtype;
  params.batch = params.seqlen = params.num_positions = 1;
  params.heads = heads;
  params.head_dim = head_dim;
  params.half_dim = half_dim;
  params.x = {x.data, 0, 0, head_dim};
  params.y = {y.data, 0, 0, head_dim};
  params.cos.data = cos.data;
  params.sin.data = sin.data;
  params.interleaved = interleaved;
  std::vector<float> scratch(rotary_scratch_size(params));
  isa::rotary_kernels.rotate_row(params, 0, 0, 0, scratch.data(), true);
  isa::rotary_kernels.fence();
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < half_dim; ++i) {
      const int64_t first = h * head_dim + (interleaved ? 2 * i : i), second = first + (interleaved ? 1 : half_dim);
      expect_near(y[first], x[first] * cos[i] - x[second] * sin[i], dtype, "rotary first", half_dim, i);
      expect_near(y[second], x[second] * cos[i] + x[first] * sin[i], dtype, "rotary second", half_dim, i);
    }
    for (int64_t i = 2 * half_dim; i < head_dim; ++i) {
      expect_near(y[h * head_dim + i], x[h * head_dim + i], dtype, "rotary rest", half_dim, i);
    }
  }
}

}  // namespace

int main() {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (int64_t size : {1, 2, 7, 8, 16, 17, 31, 32, 33, 64, 65, 95, 128, 200}) {
      for (bool flag : {false, true}) {
        check_swiglu(dtype, size, flag);
        check_norm(dtype, size, flag);
        check_rotary(dtype, size, flag);
      }
    }
  }
  std::printf("%d lanes, %d failures\n", int(isa::F32::kLanes), failures);
  return failures != 0;
}
