// Checks attention/cache_checks.h and attention/cpu/cache.cpp by brute force: what check_cache accepts and refuses,
// what it says, and where append_to_cache writes. Prints one line per failure.
#include "attention/cpu/cache.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "attention/cache_checks.h"
#include "attention/schedule.h"

using namespace flagattn;

namespace {

int failures = 0;

void expect(bool holds, const char* what, long long a, long long b, const std::string& text = "") {
  if (holds) return;
  std::printf("FAILED %s: %lld %lld %s\n", what, a, b, text.c_str());
  ++failures;
}

// Three workers, one after the other.
const ParallelFor kInARow{serial_for().run, 3};

std::mt19937 engine(7);
int64_t draw(int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(engine); }

// A cache of any kind with its values, some of them wrong now and then.
struct Problem {
  AttentionParams params;
  std::vector<int32_t> seqlens, leftpad, batch_idx, table;

  Problem() {
    CacheParams& cache = params.cache;
    cache.present = true;
    params.batch = draw(1, 4);
    params.heads_k = draw(1, 3);
    params.seqlen_q = 1;
    cache.appended = draw(0, 5);
    const auto n = static_cast<size_t>(params.batch);
    const bool paged = draw(0, 1) != 0;
    const int64_t pages = draw(1, 4);
    cache.rows = paged ? params.batch * pages + draw(0, 2) : params.batch + draw(0, 2);
    cache.page_size = paged ? draw(1, 5) : 0;
    cache.capacity = paged ? pages * cache.page_size : draw(1, 12);
    if (draw(0, 4) != 0) {
      for (size_t b = 0; b < n; ++b) seqlens.push_back(any(0, cache.capacity - cache.appended));
      cache.seqlens = seqlens.data();
    }
    if (draw(0, 1) != 0) {
      for (size_t b = 0; b < n; ++b) leftpad.push_back(any(0, cached_rows(params, static_cast<int64_t>(b))));
      cache.leftpad = leftpad.data();
    }
    if (paged) {
      cache.block_table_stride = pages + draw(0, 1);
      for (int64_t i = 0; i < params.batch * cache.block_table_stride; ++i) table.push_back(any(0, cache.rows - 1));
      if (draw(0, 1) != 0) {  // no page twice, as caches have it
        std::vector<int32_t> order;
        for (int64_t page = 0; page < cache.rows; ++page) order.push_back(static_cast<int32_t>(page));
        std::shuffle(order.begin(), order.end(), engine);
        for (int64_t b = 0; b < params.batch; ++b) {
          for (int64_t i = 0; i < pages; ++i) {
            table[static_cast<size_t>(b * cache.block_table_stride + i)] = order[static_cast<size_t>(b * pages + i)];
          }
        }
      }
      cache.block_table = table.data();
    } else if (draw(0, 1) != 0) {
      for (size_t b = 0; b < n; ++b) batch_idx.push_back(any(0, cache.rows - 1));
      cache.batch_idx = batch_idx.data();
    }
  }
  Problem(const Problem&) = delete;

  // Mostly within the bounds.
  static int32_t any(int64_t from, int64_t to) {
    const bool wild = draw(0, 19) == 0;
    return static_cast<int32_t>(wild || from > to ? draw(from - 3, to + 3) : draw(from, to));
  }

  // By the definition: row r of sequence b, as batch row and row in it; one row per place.
  using Place = std::pair<int64_t, int64_t>;
  Place place(int64_t b, int64_t r) const {
    const CacheParams& cache = params.cache;
    if (cache.block_table != nullptr) {
      return {cache.block_table[b * cache.block_table_stride + r / cache.page_size], r % cache.page_size};
    }
    return {cache.batch_idx != nullptr ? cache.batch_idx[b] : b, r};
  }

  // Everything lies inside, and what one sequence writes nobody else uses.
  bool is_right() const {
    const CacheParams& cache = params.cache;
    std::multiset<int64_t> writers;          // pages, or batch rows, once per sequence that writes into them
    std::vector<std::set<int64_t>> readers;  // of every sequence: pages that it uses besides those it writes into
    for (int64_t b = 0; b < params.batch; ++b) {
      const int64_t seqlen = cached_rows(params, b), end = seqlen + cache.appended;
      const int64_t begin = cache.leftpad != nullptr ? cache.leftpad[b] : 0;
      if (seqlen < 0 || end > cache.capacity || begin < 0 || begin > seqlen) return false;
      if (cache.batch_idx != nullptr && (cache.batch_idx[b] < 0 || cache.batch_idx[b] >= cache.rows)) return false;
      std::set<int64_t> written, used;
      std::set<int64_t> entries_written;
      for (int64_t r = begin; r < end; ++r) {
        const int64_t where = place(b, r).first;
        if (where < 0 || where >= cache.rows) return false;
        if (r >= seqlen) {
          if (cache.block_table == nullptr) {
            written.insert(where);
          } else if (entries_written.insert(r / cache.page_size).second) {
            writers.insert(where);
          }
        }
      }
      for (const int64_t where : written) writers.insert(where);
      for (int64_t r = begin; r < seqlen; ++r) {
        const bool entry_is_written =
            cache.block_table != nullptr && cache.appended > 0 && r / cache.page_size >= seqlen / cache.page_size;
        if (cache.block_table != nullptr && !entry_is_written) used.insert(place(b, r).first);
      }
      readers.push_back(used);
    }
    if (cache.appended == 0) return true;
    for (const int64_t where : writers) {
      if (writers.count(where) > 1) return false;
      for (const auto& used : readers) {
        if (used.count(where) != 0) return false;
      }
    }
    return true;
  }
};

void check_values(int64_t round) {
  Problem problem;
  AttentionParams& params = problem.params;
  const bool right = problem.is_right();
  const Status status = check_cache(params);
  expect(status.ok() == right, "accepted as by the definition", round, right, status.message);
  if (!status.ok()) {
    expect(!status.message.empty() && status.message.back() == '.', "a sentence", round, 0, status.message);
    return;
  }
  int64_t longest = 0;
  for (int64_t b = 0; b < params.batch; ++b) {
    const Sequence sequence = sequence_of(params, b);
    longest = longest < sequence.seqlen_k ? sequence.seqlen_k : longest;
  }
  expect(params.seqlen_k == longest, "the longest sequence", round, params.seqlen_k);

  // Element e of head h of new row i of sequence b is a number of its own; the cache has gaps between rows and heads.
  constexpr int64_t kDim = 3;
  constexpr float kUntouched = -1.0f;
  const int64_t head = kDim + draw(0, 2), row = params.heads_k * head + draw(0, 2);
  const int64_t in_row = params.cache.page_size != 0 ? params.cache.page_size : params.cache.capacity;
  const int64_t batch_row = in_row * row + draw(0, 2);
  std::vector<float> cache(static_cast<size_t>(params.cache.rows * batch_row), kUntouched), expected = cache;
  std::vector<float> fresh;
  for (int64_t b = 0; b < params.batch; ++b) {
    for (int64_t i = 0; i < params.cache.appended; ++i) {
      const auto [where, at] = problem.place(b, cached_rows(params, b) + i);
      for (int64_t h = 0; h < params.heads_k; ++h) {
        for (int64_t e = 0; e < kDim; ++e) {
          fresh.push_back(static_cast<float>(fresh.size()));
          expected[static_cast<size_t>(where * batch_row + at * row + h * head + e)] = fresh.back();
        }
      }
    }
  }
  fresh.push_back(0.0f);  // so that there is an element to point to
  const HeadsView to{cache.data(), batch_row, row, head};
  const HeadsView from{fresh.data(), params.cache.appended * params.heads_k * kDim, params.heads_k * kDim, kDim};
  cpu::append_to_cache(params, from, to, kDim, kInARow);
  expect(cache == expected, "new rows where they belong, and nothing else", round, params.cache.appended);
}

// Long stretches, which several items copy.
void check_many_rows() {
  AttentionParams params;
  params.batch = 2;
  params.heads_k = 1;
  params.cache.present = true;
  params.cache.rows = 2;
  params.cache.capacity = 400;
  params.cache.appended = 300;
  const int32_t seqlens[] = {100, 7};
  params.cache.seqlens = seqlens;
  expect(check_cache(params).ok(), "long stretches", 0, 0);
  std::vector<float> cache(2 * 400, -1.0f), fresh(2 * 300);
  for (size_t i = 0; i < fresh.size(); ++i) fresh[i] = static_cast<float>(i);
  cpu::append_to_cache(params, {fresh.data(), 300, 1, 1}, {cache.data(), 400, 1, 1}, 1, kInARow);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t r = 0; r < 400; ++r) {
      const bool is_new = r >= seqlens[b] && r < seqlens[b] + 300;
      const float value = is_new ? static_cast<float>(b * 300 + r - seqlens[b]) : -1.0f;
      expect(cache[static_cast<size_t>(b * 400 + r)] == value, "row", b, r);
    }
  }
}

}  // namespace

int main() {
  int64_t accepted = 0;
  for (int64_t round = 0; round < 20000; ++round) check_values(round);
  for (int64_t round = 0; round < 2000; ++round) accepted += Problem().is_right() ? 1 : 0;
  expect(accepted > 400 && accepted < 1600, "the draw has right and wrong problems", accepted, 2000);
  check_many_rows();
  return failures == 0 ? 0 : 1;
}
