// Reads a stretch of memory once, as fast as `parts` cores can, on the threads of the OpenMP library that torch has
// loaded: threads of another pool would share the cores with torch's, which go on spinning for a while after every
// call. Loaded by bench/roofline.py, linked to nothing.
#include <cstdint>
#include <cstring>

namespace {

int64_t read_part(const char* data, int64_t bytes) {
  typedef int64_t Vector __attribute__((vector_size(32)));
  constexpr int64_t kAhead = 4096;
  Vector sums[4] = {};
  for (int64_t at = 0; at + 128 <= bytes; at += 128) {
    __builtin_prefetch(data + at + kAhead);
    __builtin_prefetch(data + at + kAhead + 64);
    for (int i = 0; i < 4; ++i) {
      Vector next;
      std::memcpy(&next, data + at + 32 * i, sizeof(next));
      sums[i] ^= next;
    }
  }
  const Vector all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3];
}

}  // namespace

extern "C" int64_t read_all(const char* data, int64_t bytes, int64_t parts) {
  int64_t sum = 0;
  const int64_t part = bytes / parts / 128 * 128;
#pragma omp parallel for schedule(static, 1) reduction(^ : sum)
  for (int64_t index = 0; index < parts; ++index) sum ^= read_part(data + index * part, part);
  return sum;
}
