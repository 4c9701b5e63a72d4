// The rotation of one row's heads, one ISA level. The row's angles are widened to fp32 once and serve all its heads.
#include "rotary/cpu/rotary_isa.h"

#include "arch/vector_pair.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

// The angles of one position: `cos` and `sin` have one float per column that the rotation steps over.
struct Angles {
  const float* cos;
  const float* sin;
};

// Half-split pairs: one column per angle, in the order of a Pair of T.
template <bool kStream, typename T>
void rotate_halves(const T* x, T* y, Angles angles, int64_t half_dim) {
  for_each_pair(half_dim, [&](int64_t i, int64_t n, int) {
    const Pair first = load_pair(x + i, n), second = load_pair(x + half_dim + i, n);
    const Pair c = load_columns(angles.cos + i), s = load_columns(angles.sin + i);
    put_pair<kStream>(first * c - second * s, y + i, n);
    put_pair<kStream>(fma(second, c, first * s), y + half_dim + i, n);
  });
}

// Neighbouring pairs. A Pair that splits even and odd elements holds `first` and `second` of kLanes rotations, whose
// angles lie in order; else each cosine stands twice and each sine as (-s, s), so that one formula serves both
// channels.
template <bool kStream, typename T>
void rotate_neighbours(const T* x, T* y, Angles angles, int64_t half_dim) {
  for_each_pair(2 * half_dim, [&](int64_t i, int64_t n, int) {
    const Pair pair = load_pair(x + i, n);
    if constexpr (kSplitsEvenOdd<T>) {
      const F32 c = F32::load(angles.cos + i / 2), s = F32::load(angles.sin + i / 2);
      put_pair<kStream>({pair.first * c - pair.second * s, fma(pair.second, c, pair.first * s)}, y + i, n);
    } else {
      const Pair swapped = {swap_neighbours(pair.first), swap_neighbours(pair.second)};
      put_pair<kStream>(fma(pair, load_columns(angles.cos + i), swapped * load_columns(angles.sin + i)), y + i, n);
    }
  });
}

// Widens the angles of `position` to fp32 and places them as the rotation of T reads them.
template <typename T, typename Table>
Angles place_angles(const RotaryParams& params, int64_t b, int64_t position, float* scratch) {
  const auto row_of_table = [&](const RotaryTable& table) {
    return static_cast<const Table*>(table.data) + b * table.batch_stride + position * table.row_stride;
  };
  const Table* cos = row_of_table(params.cos);
  const Table* sin = row_of_table(params.sin);
  const int64_t half_dim = params.half_dim;
  const F32 sign = F32::set1(params.conjugate ? -1.0f : 1.0f);
  float* placed_cos = scratch;
  float* placed_sin = scratch + rotary_scratch_size(params) / 2;
  for (int64_t i = 0; i < half_dim; i += kPairLanes) {
    const int64_t n = half_dim - i < kPairLanes ? half_dim - i : kPairLanes;
    float c[kPairLanes] = {}, s[kPairLanes] = {};
    for (int64_t lane = 0; lane < n; lane += F32::kLanes) {
      const int64_t rest = n - lane < F32::kLanes ? n - lane : F32::kLanes;
      load_up_to(cos + i + lane, rest).store(c + lane);
      (load_up_to(sin + i + lane, rest) * sign).store(s + lane);
    }
    if (!params.interleaved) {
      place_columns<T>(c, placed_cos + i);
      place_columns<T>(s, placed_sin + i);
      continue;
    }
    for (int64_t lane = 0; lane < kPairLanes; ++lane) {
      if constexpr (kSplitsEvenOdd<T>) {
        placed_cos[i + lane] = c[lane];
        placed_sin[i + lane] = s[lane];
      } else {
        placed_cos[2 * (i + lane)] = placed_cos[2 * (i + lane) + 1] = c[lane];
        placed_sin[2 * (i + lane)] = -s[lane];
        placed_sin[2 * (i + lane) + 1] = s[lane];
      }
    }
  }
  return {placed_cos, placed_sin};
}

template <bool kStream, typename T>
void rotate_heads(const RotaryParams& params, int64_t b, int64_t s, Angles angles) {
  const T* x = static_cast<const T*>(params.x.data) + b * params.x.batch_stride + s * params.x.row_stride;
  T* y = static_cast<T*>(params.y.data) + b * params.y.batch_stride + s * params.y.row_stride;
  const bool in_place = params.x.data == params.y.data;
  for (int64_t h = 0; h < params.heads; ++h) {
    if (params.interleaved) {
      rotate_neighbours<kStream>(x, y, angles, params.half_dim);
    } else {
      rotate_halves<kStream>(x, y, angles, params.half_dim);
    }
    if (!in_place) {
      for (int64_t i = 2 * params.half_dim; i < params.head_dim; ++i) y[i] = x[i];
    }
    x += params.x.head_stride;
    y += params.y.head_stride;
  }
}

// Both halves of every head start at a cache line, and nothing lies behind them.
template <typename T>
bool heads_take_streams(const RotaryParams& params) {
  const RotaryOperand& y = params.y;
  const auto whole_lines = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)) % 64 == 0; };
  return streams_to(y.data) && whole_lines(y.batch_stride) && whole_lines(y.row_stride) && whole_lines(y.head_stride) &&
         whole_lines(params.half_dim) && 2 * params.half_dim == params.head_dim;
}

void rotate_row(const RotaryParams& params, int64_t b, int64_t s, int64_t position, float* scratch, bool stream) {
  dispatch(params.dtype, [&]<typename T>(T) {
    const Angles angles = dispatch(params.table_dtype, [&]<typename Table>(Table) {
      return place_angles<T, Table>(params, b, position, scratch);
    });
    with_flag(stream && heads_take_streams<T>(params),
              [&](auto streams) { rotate_heads<streams.value, T>(params, b, s, angles); });
  });
}

}  // namespace

const RotaryKernels rotary_kernels = {rotate_row, [] { fence_streams(); }};

}  // namespace flagattn::FLAGATTN_ISA
