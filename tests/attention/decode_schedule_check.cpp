// Checks the cuts of attention/decode_schedule.h by brute force. Prints one line per failure.
#include "attention/decode_schedule.h"

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

AttentionParams problem(int64_t batch, int64_t heads_k, int64_t group, int64_t seqlen_k, int64_t head_dim) {
  AttentionParams params;
  params.batch = batch;
  params.heads_k = heads_k;
  params.heads_q = heads_k * group;
  params.seqlen_q = 1;
  params.seqlen_k = seqlen_k;
  params.head_dim = params.head_dim_v = head_dim;
  return params;
}

bool decodes(const AttentionParams& params, int64_t panel) { return row_shares(params, panel).few; }

// Every (sequence, chunk, head) belongs to one item; items that join are numbered alike, and no others are.
void check_items(const AttentionParams& params, int64_t threads) {
  const DecodeSchedule schedule = decode_schedule(params, threads);
  const int64_t parts = schedule.parts(), heads = params.heads_k;
  expect(schedule.heads_per_item >= 1 && schedule.heads_per_item <= kMostDecodeHeads, "an item's heads", heads,
         params.seqlen_k, schedule.heads_per_item);
  std::vector<int> taken(static_cast<size_t>(params.batch * parts * heads)), members(taken.size());
  for (int64_t index = 0; index < schedule.num_items(); ++index) {
    const DecodeSchedule::Item item = schedule.item(index);
    expect(item.num_heads >= 1 && item.first_head + item.num_heads <= heads, "heads exist", index, item.first_head,
           item.num_heads);
    expect(item.chunk >= 0 && item.chunk < parts, "chunks exist", index, item.chunk, parts);
    expect(item.group == item.sequence * schedule.head_blocks() + item.first_head / schedule.heads_per_item, "groups",
           index, item.group, item.first_head);
    ++members[static_cast<size_t>(item.group)];
    for (int64_t head = item.first_head; head < item.first_head + item.num_heads; ++head) {
      ++taken[static_cast<size_t>((item.sequence * parts + item.chunk) * heads + head)];
    }
  }
  for (size_t i = 0; i < taken.size(); ++i) {
    expect(taken[i] == 1, "each once", static_cast<long long>(i), heads, taken[i]);
  }
  for (int64_t group = 0; group < params.batch * schedule.head_blocks(); ++group) {
    expect(members[static_cast<size_t>(group)] == parts, "a group has all parts", group, parts,
           members[static_cast<size_t>(group)]);
  }
  expect(schedule.num_items() >= threads || schedule.heads_per_item == 1, "threads get items", heads, threads,
         schedule.num_items());
}

// Packed sequences are taken by one kernel each, whatever the others are.
void check_shares() {
  const std::vector<int32_t> lengths{1, 0, 4, 5, 700, 3, 16, 17, 1};
  for (int64_t keys : {1, 100, 1000}) {
    for (size_t batch = 1; batch <= lengths.size(); ++batch) {
      std::vector<int32_t> cu_q{0}, cu_k{0};
      for (size_t b = 0; b < batch; ++b) {
        cu_q.push_back(cu_q.back() + lengths[b]);
        cu_k.push_back(cu_k.back() + static_cast<int32_t>(keys));
      }
      for (int64_t group : {1, 4, 16, 32}) {
        AttentionParams params = problem(static_cast<int64_t>(batch), 2, group, keys, 64);
        params.seqlen_q = 700;
        params.cu_seqlens_q = cu_q.data();
        params.cu_seqlens_k = cu_k.data();
        const RowShares shares = row_shares(params, 24);
        expect(shares.most_rows == 16 / group, "columns of a group", group, shares.most_rows, keys);
        bool few = false, many = false;
        int64_t few_keys = 0;
        for (size_t b = 0; b < batch; ++b) {
          const bool is_few = lengths[b] > 0 && lengths[b] <= shares.most_rows;
          few |= is_few;
          many |= lengths[b] > shares.most_rows;
          few_keys += is_few ? keys : 0;
        }
        expect(!many || shares.many, "long sequences are taken", group, keys, static_cast<long long>(batch));
        expect(!few || shares.few || shares.many, "short ones are taken", group, keys, static_cast<long long>(batch));
        if (few && many) {
          expect(shares.few == (few_keys >= 1024), "keys worth it", group, few_keys, static_cast<long long>(batch));
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (int64_t batch : {1, 2, 5}) {
    for (int64_t heads : {1, 2, 3, 7, 8, 32, 100}) {
      for (int64_t group : {1, 4, 16}) {
        for (int64_t seqlen : {1, 1000, 1024, 1025, 9000}) {
          for (int64_t threads : {1, 2, 3, 64}) check_items(problem(batch, heads, group, seqlen, 128), threads);
        }
      }
    }
  }
  expect(decode_schedule(problem(1, 8, 4, 8192, 128), 2).heads_per_item == 8, "whole rows of keys", 8, 8192, 2);
  expect(decode_schedule(problem(1, 8, 4, 1024, 128), 2).heads_per_item == 4, "half rows for two threads", 8, 1024, 2);
  expect(!decode_schedule(problem(64, 64, 16, 1 << 20, 128), 2).split, "results that do not fit", 64, 64, 1 << 20);
  expect(decode_schedule(problem(0, 4, 1, 0, 8), 2).num_items() == 0, "nothing to do", 0, 0, 0);

  AttentionParams params = problem(1, 1, 16, 10, 64);
  expect(decodes(params, 24) && !decodes(params, 12), "columns fit the panel", 16, 24, 12);
  params.seqlen_q = 2;
  expect(!decodes(params, 48), "few columns", 32, 48, 0);
  params = problem(1, 1, 4, 10, 64);
  float slope = 1.0f;
  params.alibi.slopes = &slope;
  expect(decodes(params, 24), "ALiBi joins", 0, 0, 0);
  params.bias.data = &slope;
  expect(!decodes(params, 24), "biases do not", 0, 0, 0);
  check_shares();
  return failures != 0;
}
