// The values that say where rows of caches lie, where the host can read them.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "arch/status.h"
#include "attention/params.h"
#include "attention/schedule.h"

namespace flagattn {
namespace cache_checks {

template <typename... Parts>
inline Status refuse(const Parts&... parts) {
  std::string text;
  const auto add = [&text](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (add(parts), ...);
  return Status::error(text);
}

inline int64_t leftpad_of(const CacheParams& cache, int64_t b) {
  return cache.leftpad != nullptr ? cache.leftpad[b] : 0;
}

// The pages that hold rows [begin, end) of sequence b.
struct Pages {
  const int32_t* table;
  int64_t begin, end;
};
inline Pages pages_of(const CacheParams& cache, int64_t b, int64_t begin, int64_t end) {
  const int64_t size = cache.page_size;
  return {cache.block_table + b * cache.block_table_stride, begin / size,
          begin < end ? (end - 1) / size + 1 : begin / size};
}

inline Status check_lengths(const AttentionParams& params, int64_t b) {
  const CacheParams& cache = params.cache;
  const int64_t seqlen = cached_rows(params, b), leftpad = leftpad_of(cache, b);
  if (seqlen < 0 || seqlen > cache.capacity - cache.appended) {
    const std::string room = cache.block_table == nullptr
                                 ? std::to_string(cache.capacity) + " rows of cache"
                                 : "the " + std::to_string(cache.capacity / cache.page_size) + " pages of " +
                                       std::to_string(cache.page_size) + " rows that block_table has for a sequence";
    const std::string given = params.cu_seqlens_k == nullptr
                                  ? "cache_seqlens[" + std::to_string(b) + "] is "
                                  : "cu_seqlens_k gives sequence " + std::to_string(b) + " the length ";
    return refuse(given, seqlen, "; with ", cache.appended, " rows to append and ", room, " it must lie between 0 and ",
                  cache.capacity - cache.appended, ".");
  }
  if (leftpad < 0 || leftpad > seqlen) {
    return refuse("cache_leftpad[", b, "] is ", leftpad, "; it must lie between 0 and the ", seqlen,
                  " rows that the sequence has.");
  }
  if (cache.batch_idx != nullptr && (cache.batch_idx[b] < 0 || cache.batch_idx[b] >= cache.rows)) {
    return refuse("cache_batch_idx[", b, "] is ", cache.batch_idx[b], "; the cache has ", cache.rows, " batch rows.");
  }
  if (cache.block_table == nullptr) return Status::success();
  const Pages pages = pages_of(cache, b, leftpad, seqlen + cache.appended);
  for (int64_t i = pages.begin; i < pages.end; ++i) {
    if (pages.table[i] < 0 || pages.table[i] >= cache.rows) {
      return refuse("block_table[", b, "][", i, "] is ", pages.table[i], "; the cache has ", cache.rows, " pages.");
    }
  }
  return Status::success();
}

// A batch row takes the new rows of one sequence only.
inline Status check_rows_are_own(const AttentionParams& params) {
  std::vector<bool> taken(static_cast<size_t>(params.cache.rows));
  for (int64_t b = 0; b < params.batch; ++b) {
    const auto row = static_cast<size_t>(params.cache.batch_idx[b]);
    if (taken[row]) {
      return refuse("cache_batch_idx[", b, "] is ", row,
                    ", which another sequence has too; rows are appended to each batch row once only.");
    }
    taken[row] = true;
  }
  return Status::success();
}

// A page that takes new rows is used once. Other pages may be shared: common beginnings are.
inline Status check_pages_are_own(const AttentionParams& params) {
  const CacheParams& cache = params.cache;
  constexpr int64_t kNobody = -1;
  std::vector<int64_t> writer(static_cast<size_t>(cache.rows), kNobody);
  const auto written = [&](int64_t b) {
    return pages_of(cache, b, cached_rows(params, b), cached_rows(params, b) + cache.appended);
  };
  const auto shared = [](int64_t b, int64_t i, int32_t page) {
    return refuse("block_table[", b, "][", i, "] is page ", page,
                  ", which takes new rows and is used twice; rows are appended to pages of one use only.");
  };
  for (int64_t b = 0; b < params.batch; ++b) {
    const Pages pages = written(b);
    for (int64_t i = pages.begin; i < pages.end; ++i) {
      int64_t& owner = writer[static_cast<size_t>(pages.table[i])];
      if (owner != kNobody) return shared(b, i, pages.table[i]);
      owner = b;
    }
  }
  for (int64_t b = 0; b < params.batch; ++b) {
    const Pages used = pages_of(cache, b, leftpad_of(cache, b), cached_rows(params, b)), own = written(b);
    for (int64_t i = used.begin; i < used.end; ++i) {
      if (i < own.begin && writer[static_cast<size_t>(used.table[i])] != kNobody) return shared(b, i, used.table[i]);
    }
  }
  return Status::success();
}

}  // namespace cache_checks

// Refuses lengths, paddings, indices and pages that would lead outside the cache and, where rows are to be appended,
// rows and pages that another sequence uses too. Nothing is written. Sets params.seqlen_k to the longest sequence.
inline Status check_cache(AttentionParams& params) {
  const CacheParams& cache = params.cache;
  params.seqlen_k = 0;
  for (int64_t b = 0; b < params.batch; ++b) {
    if (Status status = cache_checks::check_lengths(params, b); !status.ok()) return status;
    const int64_t keys = cached_rows(params, b) + cache.appended - cache_checks::leftpad_of(cache, b);
    if (keys > params.seqlen_k) params.seqlen_k = keys;
  }
  if (cache.appended == 0) return Status::success();
  if (cache.batch_idx != nullptr) return cache_checks::check_rows_are_own(params);
  if (cache.block_table != nullptr) return cache_checks::check_pages_are_own(params);
  return Status::success();
}

}  // namespace flagattn
