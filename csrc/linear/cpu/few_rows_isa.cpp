// A linear map of few rows: every weight is read once, in the order of memory, and nothing of it is moved. Lanes run
// along a row of the weight; a result is two chains of multiply-adds in each lane, joined at the end. So neither the
// number of rows nor of columns enters into its sum.
#include "linear/cpu/few_rows_isa.h"

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int64_t kLanes = F32::kLanes;
constexpr int64_t kStep = 2 * kLanes;
constexpr int kRowsAtOnce = 4;

// kStep neighbours, in any order that is the same for the rows and the weights. Of bf16 the even and the odd ones,
// which a shift and a mask widen.
template <typename T>
FLAGATTN_INLINE void load_step(const T* p, F32& first, F32& second) {
  first = F32::load(p);
  second = F32::load(p + kLanes);
}
FLAGATTN_INLINE void load_step(const BFloat16* p, F32& even, F32& odd) { load_pairs(p, even, odd); }

// The first n < kStep of them, then zeros.
template <typename T>
FLAGATTN_INLINE void load_rest(const T* p, int64_t n, F32& first, F32& second) {
  first = n >= kLanes ? F32::load(p) : F32::load_n(p, n);
  second = n > kLanes ? F32::load_n(p + kLanes, n - kLanes) : F32::zero();
}

template <typename T>
void pack(const FewRowsParams& params, float* rows) {
  const T* x = static_cast<const T*>(params.x);
  for (int64_t i = 0; i < params.rows; ++i, x += params.x_stride, rows += few_rows_stride(params.depth)) {
    F32 first = F32::zero(), second = F32::zero();
    int64_t d = 0;
    for (; d + kStep <= params.depth; d += kStep) {
      load_step(x + d, first, second);
      first.store(rows + d);
      second.store(rows + d + kLanes);
    }
    if (d == params.depth) continue;
    load_rest(x + d, params.depth - d, first, second);
    first.store(rows + d);
    second.store(rows + d + kLanes);
  }
}

// Adds the step at `weight` and `rows`, or of kWhole false its first `rest` products.
template <bool kWhole, typename T, int R, int C>
FLAGATTN_INLINE void add_step(const T* weight, int64_t stride, const float* rows, int64_t ld, int64_t rest,
                              F32 (&sums)[R][C][2]) {
  FLAGATTN_UNROLL for (int c = 0; c < C; ++c) {
    F32 first = F32::zero(), second = F32::zero();
    if constexpr (kWhole) {
      load_step(weight + c * stride, first, second);
    } else {
      load_rest(weight + c * stride, rest, first, second);
    }
    FLAGATTN_UNROLL for (int r = 0; r < R; ++r) {
      sums[r][c][0] = fma(first, F32::load(rows + r * ld), sums[r][c][0]);
      sums[r][c][1] = fma(second, F32::load(rows + r * ld + kLanes), sums[r][c][1]);
    }
  }
}

// R rows with C columns. The weights `ahead` elements behind these are fetched meanwhile.
template <typename T, int R, int C, bool kFetch>
void products(const T* weight, int64_t stride, int64_t ahead, int64_t depth, const float* rows,
              float (&results)[R][C]) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t ld = few_rows_stride(depth);
  F32 sums[R][C][2];
  FLAGATTN_UNROLL for (int r = 0; r < R; ++r) {
    FLAGATTN_UNROLL for (int c = 0; c < C; ++c) sums[r][c][0] = sums[r][c][1] = F32::zero();
  }
  int64_t d = 0;
  for (; d + kStep <= depth; d += kStep) {
    if (kFetch && d % kLine == 0) {
      FLAGATTN_UNROLL for (int c = 0; c < C; ++c) {
        for (int64_t line = 0; line < kStep; line += kLine) __builtin_prefetch(weight + c * stride + d + line + ahead);
      }
    }
    add_step<true>(weight + d, stride, rows + d, ld, kStep, sums);
  }
  if (d < depth) add_step<false>(weight + d, stride, rows + d, ld, depth - d, sums);
  FLAGATTN_UNROLL for (int r = 0; r < R; ++r) {
    FLAGATTN_UNROLL for (int c = 0; c < C; ++c) results[r][c] = (sums[r][c][0] + sums[r][c][1]).sum();
  }
}

template <typename T>
class Columns {
 public:
  Columns(const FewRowsParams& params, const FewRowsParams::Map& map, const float* rows)
      : params_(params), map_(map), rows_(rows) {}

  // [begin, end), at most kFewRowsCols of them.
  void run(int64_t begin, int64_t end) const {
    // As many bytes ahead as memory needs to answer, and on to the columns that come next where that is not far.
    constexpr int64_t kFar = 16 * 1024 / sizeof(T), kNear = 1024 / sizeof(T);
    const int64_t next = kFewRowsCols * map_.stride, left = (map_.cols - end) * map_.stride;
    const int64_t ahead = next <= kFar ? (left >= next ? next : 0) : kNear;
    for (int64_t row = 0; row < params_.rows; row += kRowsAtOnce) {
      const bool fetch = row == 0;
      switch (params_.rows - row) {
        case 1:
          step<1, 4>(row, begin, end, ahead, fetch);
          break;
        case 2:
          step<2, 2>(row, begin, end, ahead, fetch);
          break;
        case 3:
          step<3, 1>(row, begin, end, ahead, fetch);
          break;
        default:
          step<4, 1>(row, begin, end, ahead, fetch);
      }
    }
  }

 private:
  template <int R, int C>
  void step(int64_t row, int64_t begin, int64_t end, int64_t ahead, bool fetch) const {
    for (; begin + C <= end; begin += C) block<R, C>(row, begin, ahead, fetch);
    for (; begin < end; ++begin) block<R, 1>(row, begin, ahead, fetch);
  }
  template <int R, int C>
  void block(int64_t row, int64_t col, int64_t ahead, bool fetch) const {
    const T* weight = static_cast<const T*>(map_.weight) + col * map_.stride;
    const float* rows = rows_ + row * few_rows_stride(params_.depth);
    float results[R][C];
    if (fetch) {
      products<T, R, C, true>(weight, map_.stride, ahead, params_.depth, rows, results);
    } else {
      products<T, R, C, false>(weight, map_.stride, ahead, params_.depth, rows, results);
    }
    const T* bias = static_cast<const T*>(map_.bias);
    for (int r = 0; r < R; ++r) {
      T* y = static_cast<T*>(params_.y) + (row + r) * params_.y_stride + map_.first + col;
      for (int c = 0; c < C; ++c) {
        F32 sum = F32::set1(results[r][c]);
        if (bias != nullptr) sum = sum + F32::load_n(bias + col + c, 1);
        sum.store_n(y + c, 1);
      }
    }
  }

  const FewRowsParams& params_;
  const FewRowsParams::Map& map_;
  const float* rows_;
};

void pack_rows(const FewRowsParams& params, float* rows) {
  dispatch(params.dtype, [&]<typename T>(T) { pack<T>(params, rows); });
}

void columns(const FewRowsParams& params, const FewRowsParams::Map& map, int64_t begin, int64_t end,
             const float* rows) {
  dispatch(params.dtype, [&]<typename T>(T) {
    const Columns<T> columns(params, map, rows);
    for (; begin < end; begin += kFewRowsCols) {
      columns.run(begin, begin + kFewRowsCols < end ? begin + kFewRowsCols : end);
    }
  });
}

}  // namespace

const FewRowsKernels few_rows_kernels = {pack_rows, columns};

}  // namespace flagattn::FLAGATTN_ISA
