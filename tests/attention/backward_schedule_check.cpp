// Checks the cuts of attention/backward_schedule.h by brute force. Prints one line per failure.
#include "attention/backward_schedule.h"

#include <cstdio>
#include <vector>

using namespace flagattn;

namespace {

int failures = 0;

void expect(bool holds, const char* what, long long a, long long b, long long c) {
  if (holds) return;
  std::printf("FAILED %s: %lld %lld %lld\n", what, a, b, c);
  ++failures;
}

// Every column belongs to one part, parts go from the last columns to the first, and only the last columns' may be
// short.
void check_parts(int64_t seqlen_q, int64_t group) {
  const BackwardSplit split = backward_split(seqlen_q, group);
  const Sequence sequence{.batch = 0, .first_q = 3, .first_k = 5, .seqlen_q = seqlen_q, .seqlen_k = 7};
  const int64_t columns = seqlen_q * group;
  expect(split.parts >= 1, "a sequence has a part", seqlen_q, group, split.parts);
  expect(split.columns_per_part % kBackwardQuantum == 0, "whole vectors", seqlen_q, group, split.columns_per_part);
  expect(split.parts == 1 || split.columns_per_part >= 512, "parts are worth their share", seqlen_q, group,
         split.parts);
  expect(split.columns_per_part <= 1024 + kBackwardQuantum, "long sequences are cut", seqlen_q, group,
         split.columns_per_part);
  int64_t end = columns;
  for (int64_t index = 0; index < split.parts; ++index) {
    const BackwardPart part = backward_part(sequence, 2, group, split, index);
    expect(part.first_column + part.num_columns == end, "parts are contiguous", seqlen_q, group, index);
    expect(part.num_columns > 0 || columns == 0, "no part is empty", seqlen_q, group, index);
    expect(part.num_columns == split.columns_per_part || index == 0, "only the first part is short", seqlen_q, group,
           index);
    expect(part.head_k == 2 && part.sequence.first_k == 5, "a part knows its place", seqlen_q, group, index);
    end = part.first_column;
  }
  expect(end == 0, "all columns are covered", seqlen_q, group, end);
}

void check_blocks(int64_t part_columns, int64_t head_dim, int64_t head_dim_v) {
  const int64_t most = backward_most_columns(head_dim, head_dim_v);
  const int64_t columns = backward_block_columns(part_columns, most);
  expect(columns > 0 && columns % kBackwardQuantum == 0, "blocks are whole vectors", part_columns, head_dim, columns);
  expect(columns <= most, "no block exceeds what scratch is made for", part_columns, head_dim, columns);
  const int64_t blocks = (part_columns + columns - 1) / columns, fewest = (part_columns + most - 1) / most;
  expect(blocks <= fewest, "as few blocks as there can be", part_columns, head_dim, blocks);
}

}  // namespace

int main() {
  for (int64_t group : {1, 2, 3, 4, 6, 8, 48}) {
    for (int64_t seqlen_q = 0; seqlen_q < 3000; ++seqlen_q) check_parts(seqlen_q, group);
  }
  check_parts(1 << 20, 8);
  for (int64_t head_dim : {8, 64, 128, 192, 256}) {
    for (int64_t head_dim_v : {8, 64, 128, 256}) {
      for (int64_t columns = 0; columns < 1200; ++columns) check_blocks(columns, head_dim, head_dim_v);
    }
  }
  return failures == 0 ? 0 : 1;
}
