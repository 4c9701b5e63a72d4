// Softmax cross-entropy over contiguous pieces of logits, one ISA level.
#include "loss/cpu/loss_isa.h"

#include "arch/vector_pair.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int kSums = 4;  // independent maxima and sums hide the latency of their operations

FLAGATTN_INLINE Pair max(Pair a, Pair b) { return {max(a.first, b.first), max(a.second, b.second)}; }
FLAGATTN_INLINE Pair exp(Pair x) { return {exp(x.first), exp(x.second)}; }

// z = softcap tanh(x / softcap)
template <bool kCaps>
FLAGATTN_INLINE F32 cap(F32 x, float softcap, float inverse) {
  if constexpr (kCaps) return F32::set1(softcap) * tanh(x * F32::set1(inverse));
  return x;
}
template <bool kCaps>
FLAGATTN_INLINE Pair cap(Pair x, float softcap, float inverse) {
  return {cap<kCaps>(x.first, softcap, inverse), cap<kCaps>(x.second, softcap, inverse)};
}

// Sums

// The first n elements, and `rest` behind them.
template <typename T>
FLAGATTN_INLINE F32 load_or(const T* x, int64_t n, F32 rest) {
  return n == F32::kLanes ? F32::load(x) : select(first_n(n), F32::load_n(x, n), rest);
}

// The sum of all lanes. The largest term of a segment is 1, and what sums near it cannot hold is kept beside them.
template <int kParts>
double sum_of(const F32 (&parts)[kParts]) {
  F32 sum = parts[0], lost = F32::zero();
  for (int i = 1; i < kParts; ++i) {
    const F32 next = sum + parts[i], added = next - sum;
    lost = lost + ((sum - (next - added)) + (parts[i] - added));
    sum = next;
  }
  float sums[F32::kLanes], rests[F32::kLanes];
  sum.store(sums);
  lost.store(rests);
  double all = 0.0;
  for (int lane = 0; lane < F32::kLanes; ++lane) all += static_cast<double>(sums[lane]) + rests[lane];
  return all;
}

template <typename T, bool kCaps, bool kTotals>
SegmentSummary summarise(const T* x, int64_t count, float softcap) {
  const float inverse = kCaps ? 1.0f / softcap : 0.0f;
  const int64_t whole = count - count % (kSums * kPairLanes);
  const F32 lowest = F32::set1(-__builtin_inff());

  // tanh is monotonic: the largest logit is the largest capped one.
  Pair maxima[kSums];
  FLAGATTN_UNROLL for (Pair& maximum : maxima) maximum = {lowest, lowest};
  for (int64_t i = 0; i < whole; i += kSums * kPairLanes) {
    FLAGATTN_UNROLL for (int u = 0; u < kSums; ++u) maxima[u] = max(maxima[u], load_pair(x + i + u * kPairLanes));
  }
  const Pair both = max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3]));
  F32 top = max(both.first, both.second);
  for (int64_t i = whole; i < count; i += F32::kLanes) {
    const int64_t n = count - i < F32::kLanes ? count - i : F32::kLanes;
    top = max(top, load_or(x + i, n, lowest));
  }
  const float maximum = cap<kCaps>(F32::set1(top.hmax()), softcap, inverse).hmax();
  const Pair offset = Pair::set1(maximum == -__builtin_inff() ? 0.0f : maximum);  // -inf - -inf would be NaN
  Pair sums[kSums], totals[kSums];
  FLAGATTN_UNROLL for (int u = 0; u < kSums; ++u) sums[u] = totals[u] = Pair::set1(0.0f);
  for (int64_t i = 0; i < whole; i += kSums * kPairLanes) {
    FLAGATTN_UNROLL for (int u = 0; u < kSums; ++u) {
      const Pair z = cap<kCaps>(load_pair(x + i + u * kPairLanes), softcap, inverse);
      sums[u] = sums[u] + exp(z - offset);
      if constexpr (kTotals) totals[u] = totals[u] + z;
    }
  }
  const Pair total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  F32 parts[4 * kSums], last_total = F32::zero();
  for (int u = 0; u < kSums; ++u) {
    parts[2 * u] = sums[u].first;
    parts[2 * u + 1] = sums[u].second;
    parts[2 * (kSums + u)] = parts[2 * (kSums + u) + 1] = F32::zero();
  }
  F32* rest = parts + 2 * kSums;  // a vector of the end each
  for (int64_t i = whole; i < count; i += F32::kLanes, ++rest) {
    const int64_t n = count - i < F32::kLanes ? count - i : F32::kLanes;
    const F32 z = cap<kCaps>(load_or(x + i, n, F32::zero()), softcap, inverse);
    const F32 power = exp(z - offset.first);
    *rest = n == F32::kLanes ? power : select(first_n(n), power, F32::zero());
    if constexpr (kTotals) last_total = last_total + z;  // behind the end z is 0
  }
  return {maximum, sum_of(parts), kTotals ? (total.first + total.second + last_total).sum() : 0.0f};
}

SegmentSummary summarise_any(DType dtype, const void* x, int64_t count, float softcap, bool sums) {
  SegmentSummary summary = {};
  dispatch(dtype, [&]<typename T>(T) {
    with_flag(softcap != 0.0f, [&](auto caps) {
      with_flag(sums, [&](auto totals) {
        summary = summarise<T, caps.value, totals.value>(static_cast<const T*>(x), count, softcap);
      });
    });
  });
  return summary;
}

float capped_any(DType dtype, const void* x, float softcap) {
  float z = 0.0f;
  dispatch(dtype, [&]<typename T>(T) {
    const F32 element = F32::load_n(static_cast<const T*>(x), 1);
    float lanes[F32::kLanes];
    (softcap != 0.0f ? cap<true>(element, softcap, 1.0f / softcap) : element).store(lanes);
    z = lanes[0];
  });
  return z;
}

// Gradients

template <bool kCaps>
FLAGATTN_INLINE F32 slope(F32 x, const RowGradient& row, float softcap, float inverse, float target_share) {
  const F32 z = cap<kCaps>(x, softcap, inverse);
  const F32 power = exp(z - F32::set1(row.maximum));
  F32 gradient = fms(power, F32::set1(row.scale), F32::set1(row.smoothing)) - F32::set1(target_share);
  if constexpr (kCaps) {
    // 1 - tanh^2 = 4 u / (1 + u)^2 with u = e^(-2 |x| / softcap): the difference would cancel where tanh is near 1.
    const F32 u = exp(abs(x) * F32::set1(-2.0f * inverse)), above = F32::set1(1.0f) + u;
    gradient = gradient * (F32::set1(4.0f) * u / (above * above));
  }
  return gradient;
}

template <typename T, bool kCaps>
void gradient(const T* x, T* dx, int64_t count, const RowGradient& row, int64_t target, float softcap) {
  const float inverse = kCaps ? 1.0f / softcap : 0.0f;
  const bool here = 0 <= target && target < count;
  F32 at_target = F32::zero();
  if (here) at_target = slope<kCaps>(F32::load_n(x + target, 1), row, softcap, inverse, row.target_share);
  for_each_pair(count, [&](int64_t i, int64_t n, int) {
    const Pair logits = load_pair(x + i, n);
    const Pair gradients = {slope<kCaps>(logits.first, row, softcap, inverse, 0.0f),
                            slope<kCaps>(logits.second, row, softcap, inverse, 0.0f)};
    store_pair(gradients, dx + i, n);
  });
  if (here) at_target.store_n(dx + target, 1);
}

void gradient_any(DType dtype, const void* x, void* dx, int64_t count, const RowGradient& row, int64_t target,
                  float softcap) {
  dispatch(dtype, [&]<typename T>(T) {
    with_flag(softcap != 0.0f, [&](auto caps) {
      gradient<T, caps.value>(static_cast<const T*>(x), static_cast<T*>(dx), count, row, target, softcap);
    });
  });
}

// Conversions

void widen_any(DType dtype, const void* from, float* to, int64_t count) {
  dispatch(dtype, [&]<typename T>(T) {
    const T* elements = static_cast<const T*>(from);
    for (int64_t i = 0; i < count; i += F32::kLanes) {
      const int64_t n = count - i < F32::kLanes ? count - i : F32::kLanes;
      const F32 value = load_up_to(elements + i, n);
      n == F32::kLanes ? value.store(to + i) : value.store_n(to + i, n);
    }
  });
}

void narrow_any(DType dtype, const float* from, float scale, void* to, int64_t count) {
  dispatch(dtype, [&]<typename T>(T) {
    T* elements = static_cast<T*>(to);
    for (int64_t i = 0; i < count; i += F32::kLanes) {
      const int64_t n = count - i < F32::kLanes ? count - i : F32::kLanes;
      const F32 value = load_up_to(from + i, n) * F32::set1(scale);
      n == F32::kLanes ? value.store(elements + i) : value.store_n(elements + i, n);
    }
  });
}

void add(const float* addend, float* sum, int64_t count) {
  for_each_pair(count, [&](int64_t i, int64_t n, int) {
    store_pair(load_pair(sum + i, n) + load_pair(addend + i, n), sum + i, n);
  });
}

}  // namespace

const LossKernels loss_kernels = {summarise_any, capped_any, gradient_any, widen_any, narrow_any, add};

}  // namespace flagattn::FLAGATTN_ISA
