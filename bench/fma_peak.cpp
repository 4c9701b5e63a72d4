// Independent fused multiply-adds that never leave the registers: the arithmetic peak of one core.
// Compiled for the running CPU by bench/roofline.py; GCC's vector types pick the widest registers it has.
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kChains = 12;  // more than latency x ports (4 x 2 on today's cores), fewer than the registers

typedef float Vector __attribute__((vector_size(kLanes * 4)));

// One link of a chain. The empty asm keeps the value in its register and every step in the program.
inline __attribute__((always_inline)) void step(Vector& sum, const Vector& scale, const Vector& shift) {
  sum = sum * scale + shift;
#if defined(__x86_64__)
  asm volatile("" : "+x"(sum));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(sum));
#endif
}

}  // namespace

// Runs `iterations` rounds and returns how many floating-point operations that were (a multiply-add counts two).
extern "C" double fma_flops(long iterations) {
  const Vector scale = Vector{} + 0.999f;
  const Vector shift = Vector{} + 1e-6f;
  // Twelve named variables: an array would live in memory.
  Vector s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};
  for (long round = 0; round < iterations; ++round) {
    step(s0, scale, shift);
    step(s1, scale, shift);
    step(s2, scale, shift);
    step(s3, scale, shift);
    step(s4, scale, shift);
    step(s5, scale, shift);
    step(s6, scale, shift);
    step(s7, scale, shift);
    step(s8, scale, shift);
    step(s9, scale, shift);
    step(s10, scale, shift);
    step(s11, scale, shift);
  }
  return 2.0 * kLanes * kChains * static_cast<double>(iterations);
}
