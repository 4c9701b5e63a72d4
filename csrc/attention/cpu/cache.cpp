#include "attention/cpu/cache.h"

#include <cstring>

#include "attention/schedule.h"

namespace flagattn::cpu {

void append_to_cache(const AttentionParams& params, const HeadsView& from, const HeadsView& to, int64_t head_dim,
                     const ParallelFor& parallel) {
  constexpr int64_t kRowsPerItem = 64;
  const CacheParams& cache = params.cache;
  const auto element = size_of(params.dtype);
  const int64_t parts = (cache.appended + kRowsPerItem - 1) / kRowsPerItem;
  const auto copy_part = [&](int64_t item, char) {
    const int64_t b = item / parts, first = item % parts * kRowsPerItem;
    const int64_t end = first + kRowsPerItem < cache.appended ? first + kRowsPerItem : cache.appended;
    const Sequence sequence = sequence_of(params, b);
    for (int64_t row = first; row < end; ++row) {
      const KeyPlace place = place_of_row(sequence, cached_rows(params, b) + row);
      const char* source =
          static_cast<const char*>(from.data) + (b * from.batch_stride + row * from.row_stride) * element;
      char* target = static_cast<char*>(to.data) + place.offset(to) * element;
      for (int64_t head = 0; head < params.heads_k; ++head) {
        std::memcpy(target + head * to.head_stride * element, source + head * from.head_stride * element,
                    static_cast<size_t>(head_dim * element));
      }
    }
  };
  for_each_item(parallel, params.batch * parts, [] { return char{}; }, copy_part);
}

}  // namespace flagattn::cpu
