// SwiGLU over contiguous elements, one ISA level: every operand is read from memory once, every result written once.
//
// The work goes by blocks in two passes, the sigmoid's denominators and then the products. One pass would be a chain of
// some sixty cycles per vector, of which too few fit into the processor's schedulers at a time to keep it busy.
#include "activation/cpu/activation_isa.h"

#include "arch/vector_pair.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kAhead = 2 * kBlock;  // how far in front of the second pass lines are fetched

// 2^f for |f| <= 1/2, exactly 1 at 0; minimax in relative error, which is 1e-7 for fp32 and 3e-6 for 16-bit types.
template <typename T>
FLAGATTN_INLINE F32 exp2_of_fraction(F32 f) {
  F32 p;
  if constexpr (sizeof(T) == sizeof(float)) {
    p = F32::set1(1.32647e-03f);
    p = fma(p, f, F32::set1(9.67151e-03f));
    p = fma(p, f, F32::set1(5.550734e-02f));
    p = fma(p, f, F32::set1(2.4022242e-01f));
    p = fma(p, f, F32::set1(6.9314698e-01f));
  } else {
    p = F32::set1(9.58285e-03f);
    p = fma(p, f, F32::set1(5.590643e-02f));
    p = fma(p, f, F32::set1(2.4024099e-01f));
    p = fma(p, f, F32::set1(6.9312419e-01f));
  }
  return fma(p, f, F32::set1(1.0f));
}

// 1 + e^-z, whose reciprocal is the sigmoid: infinity below -88.4, and some number where z is NaN.
template <typename T>
FLAGATTN_INLINE F32 denominator(F32 z) {
  const F32 within = min(max(z, F32::set1(-88.75f)), F32::set1(88.0f));
  // -z log2(e) = n + f. Adding 1.5 x 2^23 leaves n, and the bias of exponents with it, in the lowest bits.
  const F32 scale = F32::set1(-1.44269504089f), shift = F32::set1(0x1.8p23f + 127.0f);
  const F32 shifted = fma(within, scale, shift);
  const F32 fraction = fms(within, scale, shifted - shift);
  return fma(exp2_of_fraction<T>(fraction), power_of_shifted(shifted), F32::set1(1.0f));
}

// Of up to kBlock gates, padded to whole pairs.
template <typename T>
void denominators_of(const T* gate, int64_t count, float* denominators) {
  for_each_pair(count, [&](int64_t i, int64_t n, int) {
    const Pair z = load_pair(gate + i, n);
    store_columns({denominator<T>(z.first), denominator<T>(z.second)}, denominators + i);
  });
}

template <typename T, bool kStream>
void forward(const T* gate, const T* up, T* y, int64_t count) {
  alignas(64) float denominators[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock, gate += kBlock, up += kBlock, y += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    denominators_of(gate, size, denominators);
    for_each_pair(size, [&](int64_t i, int64_t n, int) {
      prefetch_pair(gate + i + kAhead);
      prefetch_pair(up + i + kAhead);
      const Pair silu = load_pair(gate + i, n) / load_columns(denominators + i);
      put_pair<kStream>(silu * load_pair(up + i, n), y + i, n);
    });
  }
}

template <typename T, bool kStream>
void backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t count) {
  const Pair one = Pair::set1(1.0f);
  alignas(64) float denominators[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    denominators_of(gate + begin, size, denominators);
    for_each_pair(size, [&](int64_t i, int64_t n, int) {
      const int64_t j = begin + i;
      prefetch_pair(dy + j + kAhead);
      prefetch_pair(gate + j + kAhead);
      prefetch_pair(up + j + kAhead);
      const Pair upstream = load_pair(dy + j, n), probability = one / load_columns(denominators + i);
      const Pair silu = load_pair(gate + j, n) * probability;
      // The derivative of silu: p + z p (1 - p) = p + silu (1 - p).
      const Pair slope = fma(silu, one - probability, probability);
      put_pair<kStream>(upstream * load_pair(up + j, n) * slope, dgate + j, n);
      put_pair<kStream>(upstream * silu, dup + j, n);
    });
  }
}

void forward_any(DType dtype, const void* gate, const void* up, void* y, int64_t count, bool stream) {
  dispatch(dtype, [&]<typename T>(T) {
    const T* gates = static_cast<const T*>(gate);
    const T* ups = static_cast<const T*>(up);
    T* out = static_cast<T*>(y);
    if (stream && streams_to(out)) {
      forward<T, true>(gates, ups, out, count);
      return fence_streams();
    }
    forward<T, false>(gates, ups, out, count);
  });
}

void backward_any(DType dtype, const void* dy, const void* gate, const void* up, void* dgate, void* dup, int64_t count,
                  bool stream) {
  dispatch(dtype, [&]<typename T>(T) {
    const T* upstream = static_cast<const T*>(dy);
    const T* gates = static_cast<const T*>(gate);
    const T* ups = static_cast<const T*>(up);
    T* dgates = static_cast<T*>(dgate);
    T* dups = static_cast<T*>(dup);
    if (stream && streams_to(dgates) && streams_to(dups)) {
      backward<T, true>(upstream, gates, ups, dgates, dups, count);
      return fence_streams();
    }
    backward<T, false>(upstream, gates, ups, dgates, dups, count);
  });
}

}  // namespace

const SwigluKernels swiglu_kernels = {forward_any, backward_any};

}  // namespace flagattn::FLAGATTN_ISA
