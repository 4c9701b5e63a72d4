// The rotation of one row's heads, one ISA level. The row's angles are widened to fp32 once and serve all its heads.
#include "rotary/cpu/rotary_isa.h"

#include "arch/vector_loop.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

// Half-split pairs: `cos` and `sin` hold half_dim floats each.
template <typename T>
void rotate_halves(const T* x, T* y, const float* cos, const float* sin, int64_t half_dim) {
  for_each_vector(half_dim, [&](int64_t i, int64_t n, int) {
    const F32 first = load_up_to(x + i, n), second = load_up_to(x + half_dim + i, n);
    const F32 c = load_up_to(cos + i, n), s = load_up_to(sin + i, n);
    store_up_to(fms(first, c, second * s), y + i, n);
    store_up_to(fma(second, c, first * s), y + half_dim + i, n);
  });
}

// Neighbouring pairs: `cos` holds each cosine twice, `sin` each sine as (-s, s), so one formula serves both channels.
template <typename T>
void rotate_neighbours(const T* x, T* y, const float* cos, const float* sin, int64_t half_dim) {
  for_each_vector(2 * half_dim, [&](int64_t i, int64_t n, int) {
    const F32 pairs = load_up_to(x + i, n);
    const F32 turned = fma(pairs, load_up_to(cos + i, n), swap_neighbours(pairs) * load_up_to(sin + i, n));
    store_up_to(turned, y + i, n);
  });
}

struct Angles {
  const float* cos;
  const float* sin;
};

// The angles of `position` in the order that the rotation reads them.
template <typename Table>
Angles widen_angles(const RotaryParams& params, int64_t b, int64_t position, float* scratch) {
  const auto row_of_table = [&](const RotaryTable& table) {
    return static_cast<const Table*>(table.data) + b * table.batch_stride + position * table.row_stride;
  };
  const Table* cos = row_of_table(params.cos);
  const Table* sin = row_of_table(params.sin);
  const int64_t half_dim = params.half_dim;
  const F32 sign = F32::set1(params.conjugate ? -1.0f : 1.0f);
  if (!params.interleaved) {
    for_each_vector(half_dim, [&](int64_t i, int64_t n, int) {
      store_up_to(load_up_to(cos + i, n), scratch + i, n);
      store_up_to(load_up_to(sin + i, n) * sign, scratch + half_dim + i, n);
    });
    return {scratch, scratch + half_dim};
  }
  float* cos_twice = scratch;
  float* sin_signed = scratch + 2 * half_dim;
  for_each_vector(half_dim, [&](int64_t i, int64_t n, int) {
    float c[kLanes], s[kLanes];
    load_up_to(cos + i, n).store(c);
    (load_up_to(sin + i, n) * sign).store(s);
    for (int64_t lane = 0; lane < n; ++lane) {
      cos_twice[2 * (i + lane)] = cos_twice[2 * (i + lane) + 1] = c[lane];
      sin_signed[2 * (i + lane)] = -s[lane];
      sin_signed[2 * (i + lane) + 1] = s[lane];
    }
  });
  return {cos_twice, sin_signed};
}

template <typename T>
void rotate_heads(const RotaryParams& params, int64_t b, int64_t s, Angles angles) {
  const T* x = static_cast<const T*>(params.x.data) + b * params.x.batch_stride + s * params.x.row_stride;
  T* y = static_cast<T*>(params.y.data) + b * params.y.batch_stride + s * params.y.row_stride;
  const bool in_place = params.x.data == params.y.data;
  for (int64_t h = 0; h < params.heads; ++h) {
    if (params.interleaved) {
      rotate_neighbours(x, y, angles.cos, angles.sin, params.half_dim);
    } else {
      rotate_halves(x, y, angles.cos, angles.sin, params.half_dim);
    }
    if (!in_place) {
      for (int64_t i = 2 * params.half_dim; i < params.head_dim; ++i) y[i] = x[i];
    }
    x += params.x.head_stride;
    y += params.y.head_stride;
  }
}

void rotate_row(const RotaryParams& params, int64_t b, int64_t s, int64_t position, float* scratch) {
  const Angles angles = dispatch(
      params.table_dtype, [&]<typename Table>(Table) { return widen_angles<Table>(params, b, position, scratch); });
  dispatch(params.dtype, [&]<typename T>(T) { rotate_heads<T>(params, b, s, angles); });
}

}  // namespace

const RotaryKernels rotary_kernels = {rotate_row};

}  // namespace flagattn::FLAGATTN_ISA
