// RMSNorm over row ranges, one ISA level. A row is read twice, the second time from the L1 or L2 cache, and written
// once. While a row is being written the next one is prefetched: else the arithmetic idles during the first reading.
#include "norm/cpu/norm_isa.h"

#include "arch/vector_pair.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int kSums = 2;  // independent partial sums hide the latency of the additions

FLAGATTN_INLINE float total(const Pair (&sums)[kSums]) {
  const Pair both = sums[0] + sums[1];
  return (both.first + both.second).sum();
}

// The row behind this one, whose cache lines level with the pair at j are fetched while that pair is written.
template <typename T>
struct NextRow {
  const T* data;
  FLAGATTN_INLINE NextRow(const StridedRows& view, int64_t row, int64_t row_end)
      : data(row_of<const T>(view, row + 1 < row_end ? row + 1 : row)) {}
  FLAGATTN_INLINE void prefetch(int64_t j) const { prefetch_pair(data + j); }
};

// A pair past the caches may be written only where every row starts at a cache line.
template <typename T>
bool rows_take_streams(const T* first_row, int64_t cols) {
  return streams_to(first_row) && streams_to(first_row + cols);
}

// Forward

template <typename T, bool kRoundNormalised, bool kResidual, bool kStream>
void forward_row(const RmsNormParams& params, const float* gain, int64_t row, int64_t row_end) {
  const int64_t cols = params.cols;
  const T* s = row_of<const T>(params.x, row);
  Pair squares[kSums] = {Pair::set1(0.0f), Pair::set1(0.0f)};
  if constexpr (kResidual) {
    const T* x = s;
    const T* residual = row_of<const T>(params.residual, row);
    T* summed = static_cast<T*>(params.summed) + row * cols;
    for_each_pair<kSums>(cols, [&](int64_t j, int64_t n, int u) {
      const Pair sum = round_to<T>(load_pair(x + j, n) + load_pair(residual + j, n));
      store_pair(sum, summed + j, n);
      squares[u] = fma(sum, sum, squares[u]);
    });
    s = summed;
  } else {
    for_each_pair<kSums>(cols, [&](int64_t j, int64_t n, int u) {
      const Pair value = load_pair(s + j, n);
      squares[u] = fma(value, value, squares[u]);
    });
  }

  const float mean = total(squares) / static_cast<float>(cols);
  const float rstd = 1.0f / __builtin_sqrtf(mean + params.eps);
  params.rstd[row] = rstd;

  T* y = static_cast<T*>(params.y) + row * cols;
  const Pair scale = Pair::set1(rstd);
  const NextRow<T> next_x(params.x, row, row_end), next_residual(kResidual ? params.residual : params.x, row, row_end);
  for_each_pair<kSums>(cols, [&](int64_t j, int64_t n, int) {
    next_x.prefetch(j);
    if constexpr (kResidual) next_residual.prefetch(j);
    Pair normalised = load_pair(s + j, n) * scale;
    if constexpr (kRoundNormalised) normalised = round_to<T>(normalised);
    put_pair<kStream>(normalised * load_columns(gain + j), y + j, n);
  });
}

template <typename T, bool kStream>
void forward_rows_as(const RmsNormParams& params, const float* gain, int64_t row_begin, int64_t row_end) {
  with_flag(params.round_normalised, [&](auto round) {
    with_flag(params.residual.data != nullptr, [&](auto residual) {
      for (int64_t row = row_begin; row < row_end; ++row) {
        forward_row<T, round.value, residual.value, kStream>(params, gain, row, row_end);
      }
    });
  });
}

void forward_rows(const RmsNormParams& params, const float* gain, int64_t row_begin, int64_t row_end, bool stream) {
  dispatch(params.dtype, [&]<typename T>(T) {
    if (stream && rows_take_streams(static_cast<const T*>(params.y), params.cols)) {
      forward_rows_as<T, true>(params, gain, row_begin, row_end);
      return fence_streams();
    }
    forward_rows_as<T, false>(params, gain, row_begin, row_end);
  });
}

// Backward

template <typename T, bool kSummed, bool kWeight, bool kStream>
void backward_row(const RmsNormBackwardParams& params, const float* gain, int64_t row, int64_t row_end,
                  float* dweight) {
  const int64_t cols = params.cols;
  const T* dy = row_of<const T>(params.dy, row);
  const T* s = row_of<const T>(params.s, row);
  const T* dsummed = kSummed ? row_of<const T>(params.dsummed, row) : nullptr;
  T* ds = static_cast<T*>(params.ds) + row * cols;
  const float rstd = params.rstd[row];

  Pair products[kSums] = {Pair::set1(0.0f), Pair::set1(0.0f)};
  for_each_pair<kSums>(cols, [&](int64_t j, int64_t n, int u) {
    products[u] = fma(load_pair(dy + j, n) * load_columns(gain + j), load_pair(s + j, n), products[u]);
  });

  const Pair scale = Pair::set1(rstd);
  const Pair mean = Pair::set1(total(products) * rstd / static_cast<float>(cols));  // of g * n
  const NextRow<T> next_dy(params.dy, row, row_end), next_s(params.s, row, row_end);
  for_each_pair<kSums>(cols, [&](int64_t j, int64_t n, int) {
    next_dy.prefetch(j);
    next_s.prefetch(j);
    const Pair upstream = load_pair(dy + j, n);
    const Pair normalised = load_pair(s + j, n) * scale;
    if constexpr (kWeight) store_columns(fma(upstream, normalised, load_columns(dweight + j)), dweight + j);
    Pair gradient = scale * (upstream * load_columns(gain + j) - normalised * mean);
    if constexpr (kSummed) gradient = gradient + load_pair(dsummed + j, n);
    put_pair<kStream>(gradient, ds + j, n);
  });
}

template <typename T, bool kStream>
void backward_rows_as(const RmsNormBackwardParams& params, const float* gain, int64_t row_begin, int64_t row_end,
                      float* dweight_partial) {
  with_flag(params.dsummed.data != nullptr, [&](auto summed) {
    with_flag(dweight_partial != nullptr, [&](auto weight) {
      for (int64_t row = row_begin; row < row_end; ++row) {
        backward_row<T, summed.value, weight.value, kStream>(params, gain, row, row_end, dweight_partial);
      }
    });
  });
}

void backward_rows(const RmsNormBackwardParams& params, const float* gain, int64_t row_begin, int64_t row_end,
                   float* dweight_partial, bool stream) {
  if (dweight_partial != nullptr) {
    for (int64_t j = 0; j < padded_columns(params.cols); ++j) dweight_partial[j] = 0.0f;
  }
  dispatch(params.dtype, [&]<typename T>(T) {
    if (stream && rows_take_streams(static_cast<const T*>(params.ds), params.cols)) {
      backward_rows_as<T, true>(params, gain, row_begin, row_end, dweight_partial);
      return fence_streams();
    }
    backward_rows_as<T, false>(params, gain, row_begin, row_end, dweight_partial);
  });
}

// The weight and its gradient

void load_gain(const void* weight, DType weight_dtype, float offset, int64_t cols, DType dtype, float* gain) {
  const F32 nan = F32::set1(__builtin_nanf(""));
  const auto load = [&]<typename T, typename Weight>(T, Weight) {
    for (int64_t j = 0; j < cols; j += kPairLanes) {
      Weight block[kPairLanes] = {};
      for (int64_t i = 0; i < kPairLanes && j + i < cols; ++i) block[i] = static_cast<const Weight*>(weight)[j + i];
      float in_order[kPairLanes];
      for (int64_t i = 0; i < kPairLanes; i += F32::kLanes) {
        const F32 value = F32::load(block + i) + F32::set1(offset);
        select(value == value, value, nan).store(in_order + i);  // of NaNs the one that every dtype can hold
      }
      place_columns<T>(in_order, gain + j);
    }
  };
  dispatch(dtype, [&](auto row) { dispatch(weight_dtype, [&](auto column) { load(row, column); }); });
}

void reduce_dweight(const float* partials, int64_t num_partials, int64_t cols, int64_t col_begin, int64_t col_end,
                    DType dtype, DType weight_dtype, void* dweight) {
  const auto reduce = [&]<typename T, typename Weight>(T, Weight) {
    for (int64_t j = col_begin; j < col_end; j += kPairLanes) {
      // Kahan's sum: `lost` is what the additions so far have rounded away, so many rows cost no accuracy.
      Pair sum = Pair::set1(0.0f), lost = Pair::set1(0.0f);
      for (int64_t p = 0; p < num_partials; ++p) {
        const Pair addend = load_columns(partials + p * padded_columns(cols) + j) - lost;
        const Pair next = sum + addend;
        lost = (next - sum) - addend;
        sum = next;
      }
      float placed[kPairLanes], in_order[kPairLanes];
      store_columns(sum, placed);
      columns_in_order<T>(placed, in_order);
      Weight block[kPairLanes];
      for (int64_t i = 0; i < kPairLanes; i += F32::kLanes) F32::load(in_order + i).store(block + i);
      for (int64_t i = 0; i < kPairLanes && j + i < cols; ++i) static_cast<Weight*>(dweight)[j + i] = block[i];
    }
  };
  dispatch(dtype, [&](auto row) { dispatch(weight_dtype, [&](auto column) { reduce(row, column); }); });
}

}  // namespace

const RmsNormKernels rms_norm_kernels = {load_gain, forward_rows, backward_rows, reduce_dweight};

}  // namespace flagattn::FLAGATTN_ISA
