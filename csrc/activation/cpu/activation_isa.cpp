// SwiGLU over contiguous elements, one ISA level: every operand is read once, every result written once.
#include "activation/cpu/activation_isa.h"

#include "arch/vector_loop.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

// 1 / (1 + e^-z). The exponent is clamped where e^-z would overflow; min() returns its second operand for NaN.
FLAGATTN_INLINE F32 sigmoid(F32 z) {
  const F32 exponent = min(F32::set1(127.0f), z * F32::set1(-1.442695041f));
  const F32 one = F32::set1(1.0f);
  return one / (one + exp2(exponent));
}

template <typename T>
void forward(const T* gate, const T* up, T* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, int64_t n, int) {
    const F32 z = load_up_to(gate + i, n);
    store_up_to(z * sigmoid(z) * load_up_to(up + i, n), y + i, n);
  });
}

template <typename T>
void backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t count) {
  for_each_vector(count, [&](int64_t i, int64_t n, int) {
    const F32 upstream = load_up_to(dy + i, n), z = load_up_to(gate + i, n);
    const F32 probability = sigmoid(z);
    const F32 silu = z * probability;
    // The derivative of silu: p + z p (1 - p) = p + silu (1 - p).
    const F32 slope = fma(silu, F32::set1(1.0f) - probability, probability);
    store_up_to(upstream * load_up_to(up + i, n) * slope, dgate + i, n);
    store_up_to(upstream * silu, dup + i, n);
  });
}

void forward_any(DType dtype, const void* gate, const void* up, void* y, int64_t count) {
  dispatch(dtype, [&]<typename T>(T) {
    forward(static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(y), count);
  });
}

void backward_any(DType dtype, const void* dy, const void* gate, const void* up, void* dgate, void* dup,
                  int64_t count) {
  dispatch(dtype, [&]<typename T>(T) {
    backward(static_cast<const T*>(dy), static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(dgate),
             static_cast<T*>(dup), count);
  });
}

}  // namespace

const SwigluKernels swiglu_kernels = {forward_any, backward_any};

}  // namespace flagattn::FLAGATTN_ISA
