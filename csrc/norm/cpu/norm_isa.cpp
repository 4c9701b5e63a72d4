// RMSNorm over row ranges, one ISA level. A row is read twice, the second time from the L1 or L2 cache, and written
// once.
#include "norm/cpu/norm_isa.h"

#include "arch/vector_loop.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int kSums = 4;  // independent partial sums hide the latency of the additions

FLAGATTN_INLINE float total(const F32 (&sums)[kSums]) { return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum(); }

// Forward

template <typename T, bool kRoundNormalised, bool kResidual>
void forward_row(const RmsNormParams& params, const float* gain, int64_t row) {
  const int64_t cols = params.cols;
  const T* s = row_of<const T>(params.x, row);
  F32 squares[kSums] = {F32::zero(), F32::zero(), F32::zero(), F32::zero()};
  if constexpr (kResidual) {
    const T* x = s;
    const T* residual = row_of<const T>(params.residual, row);
    T* summed = static_cast<T*>(params.summed) + row * cols;
    for_each_vector<kSums>(cols, [&](int64_t j, int64_t n, int u) {
      const F32 sum = round_to<T>(load_up_to(x + j, n) + load_up_to(residual + j, n));
      store_up_to(sum, summed + j, n);
      squares[u] = fma(sum, sum, squares[u]);
    });
    s = summed;
  } else {
    for_each_vector<kSums>(cols, [&](int64_t j, int64_t n, int u) {
      const F32 value = load_up_to(s + j, n);
      squares[u] = fma(value, value, squares[u]);
    });
  }

  const float mean = total(squares) / static_cast<float>(cols);
  const float rstd = 1.0f / __builtin_sqrtf(mean + params.eps);
  params.rstd[row] = rstd;

  T* y = static_cast<T*>(params.y) + row * cols;
  const F32 scale = F32::set1(rstd);
  for_each_vector<kSums>(cols, [&](int64_t j, int64_t n, int) {
    F32 normalised = load_up_to(s + j, n) * scale;
    if constexpr (kRoundNormalised) normalised = round_to<T>(normalised);
    store_up_to(normalised * load_up_to(gain + j, n), y + j, n);
  });
}

template <typename T, bool kRoundNormalised>
void forward_rows_of(const RmsNormParams& params, const float* gain, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    if (params.residual.data != nullptr) {
      forward_row<T, kRoundNormalised, true>(params, gain, row);
    } else {
      forward_row<T, kRoundNormalised, false>(params, gain, row);
    }
  }
}

void forward_rows(const RmsNormParams& params, const float* gain, int64_t row_begin, int64_t row_end) {
  dispatch(params.dtype, [&]<typename T>(T) {
    if (params.round_normalised) {
      forward_rows_of<T, true>(params, gain, row_begin, row_end);
    } else {
      forward_rows_of<T, false>(params, gain, row_begin, row_end);
    }
  });
}

// Backward

template <typename T, bool kSummed, bool kWeight>
void backward_row(const RmsNormBackwardParams& params, const float* gain, int64_t row, float* dweight) {
  const int64_t cols = params.cols;
  const T* dy = row_of<const T>(params.dy, row);
  const T* s = row_of<const T>(params.s, row);
  const T* dsummed = kSummed ? row_of<const T>(params.dsummed, row) : nullptr;
  T* ds = static_cast<T*>(params.ds) + row * cols;
  const float rstd = params.rstd[row];

  F32 products[kSums] = {F32::zero(), F32::zero(), F32::zero(), F32::zero()};
  for_each_vector<kSums>(cols, [&](int64_t j, int64_t n, int u) {
    const F32 g = load_up_to(dy + j, n) * load_up_to(gain + j, n);
    products[u] = fma(g, load_up_to(s + j, n), products[u]);
  });

  const F32 scale = F32::set1(rstd);
  const F32 mean = F32::set1(total(products) * rstd / static_cast<float>(cols));  // of g * n
  for_each_vector<kSums>(cols, [&](int64_t j, int64_t n, int) {
    const F32 upstream = load_up_to(dy + j, n);
    const F32 normalised = load_up_to(s + j, n) * scale;
    if constexpr (kWeight) {
      store_up_to(fma(upstream, normalised, load_up_to(dweight + j, n)), dweight + j, n);
    }
    F32 gradient = scale * (upstream * load_up_to(gain + j, n) - normalised * mean);
    if constexpr (kSummed) gradient = gradient + load_up_to(dsummed + j, n);
    store_up_to(gradient, ds + j, n);
  });
}

void backward_rows(const RmsNormBackwardParams& params, const float* gain, int64_t row_begin, int64_t row_end,
                   float* dweight_partial) {
  if (dweight_partial != nullptr) {
    for (int64_t j = 0; j < params.cols; ++j) dweight_partial[j] = 0.0f;
  }
  dispatch(params.dtype, [&]<typename T>(T) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      const bool summed = params.dsummed.data != nullptr, weight = dweight_partial != nullptr;
      if (summed && weight) {
        backward_row<T, true, true>(params, gain, row, dweight_partial);
      } else if (weight) {
        backward_row<T, false, true>(params, gain, row, dweight_partial);
      } else if (summed) {
        backward_row<T, true, false>(params, gain, row, nullptr);
      } else {
        backward_row<T, false, false>(params, gain, row, nullptr);
      }
    }
  });
}

// The weight and its gradient

void load_gain(const void* weight, DType dtype, float offset, int64_t cols, float* gain) {
  dispatch(dtype, [&]<typename T>(T) {
    const T* source = static_cast<const T*>(weight);
    for_each_vector<kSums>(cols, [&](int64_t j, int64_t n, int) {
      store_up_to(load_up_to(source + j, n) + F32::set1(offset), gain + j, n);
    });
  });
}

void reduce_dweight(const float* partials, int64_t num_partials, int64_t cols, int64_t col_begin, int64_t col_end,
                    DType dtype, void* dweight) {
  dispatch(dtype, [&]<typename T>(T) {
    T* out = static_cast<T*>(dweight) + col_begin;
    for_each_vector<kSums>(col_end - col_begin, [&](int64_t j, int64_t n, int) {
      F32 sum = F32::zero();
      for (int64_t p = 0; p < num_partials; ++p) sum = sum + load_up_to(partials + p * cols + col_begin + j, n);
      store_up_to(sum, out + j, n);
    });
  });
}

}  // namespace

const RmsNormKernels rms_norm_kernels = {load_gain, forward_rows, backward_rows, reduce_dweight};

}  // namespace flagattn::FLAGATTN_ISA
