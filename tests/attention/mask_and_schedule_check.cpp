// Brute force: masks, their cut into runs and the division of work against the definitions, over many small shapes.
// Prints what is wrong and exits with 1, or exits with 0.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "arch/parallel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/mask.h"
#include "attention/schedule.h"

namespace {

using namespace flagattn;
using namespace flagattn::FLAGATTN_ISA;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

bool sees(const MaskShape& shape, int64_t row, int64_t key) {
  const int64_t distance = row + shape.seqlen_k - shape.seqlen_q - key;
  const MaskParams& mask = shape.mask;
  return (mask.window_left == MaskParams::kUnbounded || distance <= mask.window_left) &&
         (mask.window_right == MaskParams::kUnbounded || distance >= -mask.window_right);
}

bool contains(const KeyRange& range, int64_t key) { return range.begin <= key && key < range.end; }

// The near and the far part of a mask: together all of it, element by element, and as ranges of several rows.
void check_parts(const MaskShape& shape, int64_t threshold) {
  const KeyRange all = shape.diagonals();
  for (const KeyPart part : {KeyPart::kNear, KeyPart::kFar}) {
    const PartShape parts{shape, part, threshold};
    const KeyRange diagonals = parts.diagonals();
    const auto belongs = [&](int64_t row, int64_t key) {
      const bool is_far = row + shape.seqlen_k - shape.seqlen_q - key >= threshold;
      return sees(shape, row, key) && is_far == (part == KeyPart::kFar);
    };
    expect(diagonals.begin >= all.begin && diagonals.end <= all.end, "PartShape::diagonals stays inside the mask's");
    for (int64_t first = 0; first < shape.seqlen_q; ++first) {
      for (int64_t last = first; last < shape.seqlen_q; ++last) {
        const KeyRange any = parts.keys_of_any_row(first, last), every = parts.keys_of_every_row(first, last);
        for (int64_t key = 0; key < shape.seqlen_k; ++key) {
          bool some = false, each = true;
          for (int64_t row = first; row <= last; ++row) {
            some |= belongs(row, key);
            each &= belongs(row, key);
          }
          if (first == last) expect(contains(diagonals, key - first) == some, "PartShape::diagonals");
          expect(contains(any, key) || !some, "PartShape::keys_of_any_row");
          expect(contains(every, key) == each, "PartShape::keys_of_every_row");
        }
      }
    }
  }
}

// Intervals of rows and of ranges of rows, and the piecewise border.
void check_masks() {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  for (int64_t seqlen_q : {1, 2, 3, 7}) {
    for (int64_t seqlen_k : {0, 1, 2, 5, 9}) {
      for (int64_t left : {int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{3}, int64_t{20}, kHuge}) {
        for (int64_t right : {int64_t{-1}, int64_t{0}, int64_t{2}, int64_t{20}, kHuge}) {
          const MaskShape shape{seqlen_q, seqlen_k, {left, right}};
          for (int64_t threshold : {-kHuge, int64_t{-8}, int64_t{-1}, int64_t{0}, int64_t{2}, int64_t{9}, kHuge}) {
            check_parts(shape, threshold);
          }
          for (int64_t first = 0; first < seqlen_q; ++first) {
            const KeyRange keys = shape.keys_of_row(first);
            expect(keys.begin >= 0 && keys.end <= seqlen_k, "keys_of_row stays inside the sequence");
            for (int64_t last = first; last < seqlen_q; ++last) {
              const KeyRange any = shape.keys_of_any_row(first, last), every = shape.keys_of_every_row(first, last);
              for (int64_t key = 0; key < seqlen_k; ++key) {
                bool some = false, all = true;
                for (int64_t row = first; row <= last; ++row) {
                  some |= sees(shape, row, key);
                  all &= sees(shape, row, key);
                }
                if (first == last) expect(contains(keys, key) == some, "keys_of_row");
                // Without gaps: rows that see nothing may leave keys in it that no row sees.
                expect(contains(any, key) || !some, "keys_of_any_row");
                expect(contains(every, key) == all, "keys_of_every_row");
              }
            }
          }
        }
      }
      for (int64_t threshold :
           {-kHuge, int64_t{-20}, int64_t{-3}, int64_t{0}, int64_t{1}, int64_t{4}, int64_t{20}, kHuge}) {
        const MaskShape shape{seqlen_q, seqlen_k, {}};
        for (int64_t row = 0; row < seqlen_q; ++row) {
          const int64_t end = shape.far_end(row, threshold);
          expect(end >= 0 && end <= seqlen_k, "far_end stays inside the sequence");
          for (int64_t key = 0; key < seqlen_k; ++key) {
            expect((key < end) == (row + seqlen_k - seqlen_q - key >= threshold), "far_end");
          }
        }
      }
    }
  }
}

// Every score that counts lies in exactly one run, and the clear part of a run needs no mask.
void check_runs() {
  std::mt19937 random(0);
  const auto draw = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
  };
  for (int trial = 0; trial < 20000; ++trial) {
    const int group = draw(1, 6), seqlen_q = draw(1, 60), seqlen_k = draw(1, 80);
    const MaskShape shape{seqlen_q, seqlen_k, {draw(0, 2) == 0 ? draw(0, 40) : -1, draw(0, 2) != 0 ? draw(0, 20) : -1}};
    const int first_row = draw(0, seqlen_q - 1);
    PanelMask mask;
    for (int column = 0; column < kPanel; ++column) {
      const int64_t row = first_row + column / group < seqlen_q ? first_row + column / group : seqlen_q - 1;
      const KeyRange keys = shape.keys_of_row(row);
      mask.begin[column] = static_cast<int32_t>(keys.begin);
      mask.end[column] = static_cast<int32_t>(keys.end);
      mask.far_end[column] = 0;
    }
    const int32_t first_key = draw(0, seqlen_k - 1);
    const int32_t num_keys = draw(1, seqlen_k - first_key);
    Run runs[kMostRuns];
    const int num_runs = cut_into_runs(mask, first_key, num_keys, runs);
    expect(num_runs <= kMostRuns, "number of runs");
    for (int i = 0; i < num_runs; ++i) {
      const Run& run = runs[i];
      expect(run.begin < run.end && run.begin % kMR == 0 && run.end % kMR == 0, "runs are whole strips");
      expect(i == 0 || runs[i - 1].end <= run.begin, "runs are in order");
      expect(run.clear_begin % kMR == 0 && run.clear_end % kMR == 0, "clear parts are whole strips");
      expect(run.begin <= run.clear_begin && run.clear_end <= run.end, "clear parts lie inside");
    }
    for (int column = 0; column < kPanel; ++column) {
      for (int32_t key = 0; key < strip_ceil(num_keys); ++key) {
        const bool seen = key < num_keys && mask.begin[column] <= first_key + key && first_key + key < mask.end[column];
        const int vector = column / F32::kLanes;
        int covered = 0;
        for (int i = 0; i < num_runs; ++i) {
          const Run& run = runs[i];
          const bool inside = run.begin <= key && key < run.end && run.first_vector <= vector &&
                              vector < run.first_vector + run.num_vectors;
          covered += inside;
          if (inside && run.clear_begin <= key && key < run.clear_end) expect(seen, "the clear part of a run is seen");
        }
        expect(covered <= 1 && (covered == 1 || !seen), "every seen key lies in one run");
      }
    }
  }
}

// Every column belongs to one item, later columns come first.
void check_schedule() {
  for (int64_t batch : {0, 1, 3}) {
    for (int64_t heads_k : {1, 2, 5}) {
      for (int64_t group : {1, 3, 8}) {
        for (int64_t seqlen_q : {0, 1, 5, 100, 2048}) {
          for (int64_t threads : {1, 2, 7, 64}) {
            for (int64_t head_dim : {8, 64, 256}) {
              AttentionParams params;
              params.batch = batch;
              params.heads_k = heads_k;
              params.heads_q = heads_k * group;
              params.seqlen_q = seqlen_q;
              params.head_dim = params.head_dim_v = head_dim;
              const ForwardSchedule schedule{cpu_forward_config(params, kPanel, threads), batch, heads_k};
              const int64_t columns = seqlen_q * group;
              expect(schedule.config.columns_per_item % kPanel == 0, "items are whole panels");
              expect((schedule.num_items() == 0) == (batch == 0 || seqlen_q == 0), "empty batches have no items");
              const int64_t panels = (columns + kPanel - 1) / kPanel;
              const int64_t most = batch * heads_k * panels;
              expect(schedule.num_items() >= (most < threads ? most : threads),
                     "every thread gets work where there is enough");
              std::vector<int64_t> covered(static_cast<size_t>(batch * heads_k * columns));
              for (int64_t i = 0; i < schedule.num_items(); ++i) {
                const ForwardItem item = schedule.item(i);
                expect(item.sequence < batch && item.head_k < heads_k, "items lie inside the batch");
                expect(item.group == item.sequence * heads_k + item.head_k, "groups are numbered through");
                const int64_t stop = schedule.stop(i, schedule.num_items());
                expect(i < stop && stop <= i + schedule.config.items_at_once,
                       "few items are led past the keys together");
                expect(schedule.item(stop - 1).group == item.group, "and they are of one group");
                expect(schedule.stop(i, i + 1) == i + 1, "no further than the worker's run of items");
                if (i % schedule.config.items_per_group != 0) {
                  expect(item.first_column < schedule.item(i - 1).first_column, "later columns come first");
                }
                for (int64_t c = item.first_column;
                     c < item.first_column + schedule.config.columns_per_item && c < columns; ++c) {
                  ++covered[static_cast<size_t>((item.sequence * heads_k + item.head_k) * columns + c)];
                }
              }
              for (int64_t count : covered) expect(count == 1, "every column belongs to one item");
            }
          }
        }
      }
    }
  }
}

// A worker keeps all tiles of a sequence, or whole chunks of it in bounded memory.
void check_kept_tiles() {
  for (int64_t seqlen_k : {0, 1, 128, 129, 1024, 1025, 5000, 1 << 24}) {
    for (int64_t head_dim : {8, 64, 128, 256, 4096}) {
      AttentionParams params;
      params.batch = params.heads_k = params.heads_q = 1;
      params.seqlen_q = 100000;
      params.seqlen_k = seqlen_k;
      params.head_dim = params.head_dim_v = head_dim;
      const CpuForwardConfig config = cpu_forward_config(params, kPanel, 2);
      const int64_t kept = config.key_tiles * kCpuKeyTile;
      expect(kept > 0, "there is room for a tile");
      expect(kept >= seqlen_k || kept % kCpuKeyChunk == 0, "all keys or whole chunks are kept");
      expect(kept >= seqlen_k || config.items_at_once > 1, "who packs keys again does it for several items");
      expect(kept <= kCpuKeyChunk || kept * head_dim <= 1 << 20, "kept tiles are bounded");
      expect(config.items_at_once * config.columns_per_item * head_dim <= 1 << 18 || config.columns_per_item == kPanel,
             "columns are bounded");
    }
  }
}

// Every item runs once, neighbours in order, long runs before short ones.
void check_runs_of_items() {
  for (int64_t threads : {1, 2, 7}) {
    for (int64_t items : {0, 1, 2, 13, 1000}) {
      ParallelFor parallel = serial_for();
      parallel.num_threads = threads;
      int64_t next = 0, longest = items;
      for_each_run_of_items(
          parallel, items, [] { return 0; },
          [&](int64_t begin, int64_t end, int) {
            expect(begin == next && begin < end && end <= items, "runs of items follow one another");
            expect(end - begin <= longest, "runs of items get shorter");
            longest = end - begin;
            next = end;
          });
      expect(next == items, "every item runs");
      expect(items < 2 * threads || longest == 1, "the last run is a single item");
    }
  }
}

}  // namespace

int main() {
  check_masks();
  check_runs();
  check_schedule();
  check_kept_tiles();
  check_runs_of_items();
  return 0;
}
