// Threads come from the caller (torch's own pool); nothing below csrc/torch creates any.
#pragma once

#include <atomic>
#include <cstdint>

namespace flagattn {

// `run(num_workers, body, closure)` calls body(closure, worker) once for each worker in [0, num_workers), some or all
// of them at the same time, and returns when all have ended. It may run them one after the other.
struct ParallelFor {
  using Body = void (*)(void* closure, int64_t worker);
  void (*run)(int64_t num_workers, Body body, void* closure);
  int64_t num_threads;
};

inline ParallelFor serial_for() {
  return {[](int64_t num_workers, ParallelFor::Body body, void* closure) {
            for (int64_t worker = 0; worker < num_workers; ++worker) body(closure, worker);
          },
          1};
}

// How many elements of a row-wise op one item holds: many, so that a thread streams through memory for a while, but
// enough items for every thread. Results may not depend on it.
inline int64_t elements_per_item(int64_t elements, const ParallelFor& parallel) {
  constexpr int64_t kFewest = 32 * 1024, kMost = 256 * 1024;
  const int64_t share = elements / (4 * (parallel.num_threads > 0 ? parallel.num_threads : 1));
  return share < kFewest ? kFewest : share > kMost ? kMost : share;
}

// Hands the items [0, num_items) to the workers one by one, in order: an item's work may differ a lot in size.
// `make_scratch()` runs once per worker, `body(item, scratch)` once per item. Which worker gets an item depends on
// load, so results may depend on the item alone.
template <typename MakeScratch, typename Body>
void for_each_item(const ParallelFor& parallel, int64_t num_items, MakeScratch&& make_scratch, Body&& body) {
  if (num_items <= 0) return;
  struct Closure {
    std::atomic<int64_t> next{0};
    int64_t num_items;
    MakeScratch& make_scratch;
    Body& body;
  } closure{.num_items = num_items, .make_scratch = make_scratch, .body = body};
  const int64_t num_workers = num_items < parallel.num_threads ? num_items : parallel.num_threads;
  parallel.run(
      num_workers,
      [](void* opaque, int64_t) {
        auto& self = *static_cast<Closure*>(opaque);
        int64_t item = self.next.fetch_add(1, std::memory_order_relaxed);
        if (item >= self.num_items) return;
        auto scratch = self.make_scratch();
        for (; item < self.num_items; item = self.next.fetch_add(1, std::memory_order_relaxed))
          self.body(item, scratch);
      },
      &closure);
}

// Hands runs of neighbouring items [begin, end) to the workers, first long ones and at last single items: neighbours
// share preparations that `scratch` keeps, and what is left at the end is small enough to even out. As above, results
// may depend on the item alone; `body(begin, end, scratch)` runs once per run.
template <typename MakeScratch, typename Body>
void for_each_run_of_items(const ParallelFor& parallel, int64_t num_items, MakeScratch&& make_scratch, Body&& body) {
  if (num_items <= 0) return;
  struct Closure {
    std::atomic<int64_t> next{0};
    int64_t num_items, num_workers;
    MakeScratch& make_scratch;
    Body& body;

    // An empty run where all items are taken.
    void claim(int64_t& begin, int64_t& end) {
      begin = next.load(std::memory_order_relaxed);
      do {
        const int64_t share = (num_items - begin) / (2 * num_workers);
        end = begin >= num_items ? begin : begin + (share > 1 ? share : 1);
      } while (begin < end && !next.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    }
  } closure{.num_items = num_items,
            .num_workers = num_items < parallel.num_threads ? num_items : parallel.num_threads,
            .make_scratch = make_scratch,
            .body = body};
  parallel.run(
      closure.num_workers,
      [](void* opaque, int64_t) {
        auto& self = *static_cast<Closure*>(opaque);
        int64_t begin, end;
        self.claim(begin, end);
        if (begin == end) return;
        auto scratch = self.make_scratch();
        for (; begin < end; self.claim(begin, end)) self.body(begin, end, scratch);
      },
      &closure);
}

}  // namespace flagattn
