// SwiGLU over contiguous elements, one ISA level: every operand is read once, every result written once.
#include "activation/cpu/activation_isa.h"

#include "arch/vector_pair.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

// 1 / (1 + e^-z). The exponent is clamped where e^-z would overflow; min() returns its second operand for NaN.
FLAGATTN_INLINE F32 sigmoid(F32 z) {
  const F32 exponent = min(F32::set1(127.0f), z * F32::set1(-1.442695041f));
  const F32 one = F32::set1(1.0f);
  return one / (one + exp2(exponent));
}
FLAGATTN_INLINE Pair sigmoid(Pair z) { return {sigmoid(z.first), sigmoid(z.second)}; }

template <typename T, bool kStream>
void forward(const T* gate, const T* up, T* y, int64_t count) {
  for_each_pair(count, [&](int64_t i, int64_t n, int) {
    const Pair z = load_pair(gate + i, n);
    put_pair<kStream>(z * sigmoid(z) * load_pair(up + i, n), y + i, n);
  });
}

template <typename T, bool kStream>
void backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t count) {
  for_each_pair(count, [&](int64_t i, int64_t n, int) {
    const Pair upstream = load_pair(dy + i, n), z = load_pair(gate + i, n);
    const Pair probability = sigmoid(z);
    const Pair silu = z * probability;
    // The derivative of silu: p + z p (1 - p) = p + silu (1 - p).
    const Pair slope = fma(silu, Pair::set1(1.0f) - probability, probability);
    put_pair<kStream>(upstream * load_pair(up + i, n) * slope, dgate + i, n);
    put_pair<kStream>(upstream * silu, dup + i, n);
  });
}

void forward_any(DType dtype, const void* gate, const void* up, void* y, int64_t count, bool stream) {
  dispatch(dtype, [&]<typename T>(T) {
    const T* gates = static_cast<const T*>(gate);
    const T* ups = static_cast<const T*>(up);
    T* out = static_cast<T*>(y);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (stream && streams_to(out)) {
        forward<T, true>(gates, ups, out, count);
        return fence_streams();
      }
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
    if constexpr (sizeof(T) == sizeof(float)) {
      if (stream && streams_to(dgates) && streams_to(dups)) {
        backward<T, true>(upstream, gates, ups, dgates, dups, count);
        return fence_streams();
      }
    }
    backward<T, false>(upstream, gates, ups, dgates, dups, count);
  });
}

}  // namespace

const SwigluKernels swiglu_kernels = {forward_any, backward_any};

}  // namespace flagattn::FLAGATTN_ISA
