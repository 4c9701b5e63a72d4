// Brute force: the summaries and terms that ScoreTerms makes of masks, biases and ALiBi against the definitions, over
// random block-sparse operands of every broadcast shape. Prints what is wrong and exits with 1, or exits with 0.
#include "attention/cpu/score_terms.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

namespace {

using namespace flagattn;
using namespace flagattn::FLAGATTN_ISA;

constexpr int64_t kBatch = 2, kHeads = 3;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

std::mt19937 generator(7);
int64_t up_to(int64_t last) { return std::uniform_int_distribution<int64_t>(0, last)(generator); }
template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[up_to(static_cast<int64_t>(values.size()) - 1)];
}

// An operand of shape (kBatch, kHeads, rows, keys), repeated along any of its dimensions, somewhere inside a buffer.
template <typename T>
struct Operand {
  std::vector<T> buffer;
  ScoresView view;

  Operand(int64_t rows, int64_t keys) {
    const bool repeats[] = {up_to(1) == 0, up_to(1) == 0, up_to(1) == 0, up_to(3) == 0};
    const int64_t gap = up_to(5);
    view.key_stride = repeats[3] ? 0 : 1;
    view.row_stride = repeats[2] ? 0 : keys + gap;
    view.head_stride = repeats[1] ? 0 : rows * (keys + gap) + gap;
    view.batch_stride = repeats[0] ? 0 : kHeads * (rows * (keys + gap) + gap);
    const int64_t offset = up_to(9);
    buffer.resize(static_cast<size_t>(offset + kBatch * kHeads * (rows + 1) * (keys + gap + 1) + 16));
    view.data = buffer.data() + offset;
  }
  T& at(int64_t batch, int64_t head, int64_t row, int64_t key) {
    return static_cast<T*>(
        view.data)[batch * view.batch_stride + head * view.head_stride + row * view.row_stride + key * view.key_stride];
  }
  // Blocks of rows and keys are wholly hidden, wholly seen, or mixed; some rows hide everything.
  template <typename Hidden, typename Seen>
  void fill(int64_t rows, int64_t keys, Hidden&& hidden, Seen&& seen) {
    const int64_t height = one_of<int64_t>({1, 4, 16, 64}), width = one_of<int64_t>({8, 33, 128});
    std::vector<int64_t> kinds;
    for (int64_t i = 0; i < (rows / height + 1) * (keys / width + 1) * kBatch * kHeads; ++i) kinds.push_back(up_to(3));
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t h = 0; h < kHeads; ++h) {
        for (int64_t row = 0; row < rows; ++row) {
          const bool empty = up_to(9) == 0;
          for (int64_t key = 0; key < keys; ++key) {
            const int64_t block = (b * kHeads + h) * (rows / height + 1) + row / height;
            const int64_t kind = kinds[static_cast<size_t>(block * (keys / width + 1) + key / width)];
            const bool hides_it = empty || kind == 0 || (kind == 3 && up_to(1) == 0);
            at(b, h, row, key) = hides_it ? hidden() : seen();
          }
        }
      }
    }
  }
};

float value_of(float x) { return x; }
float value_of(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// One draw; hidden() and seen() give values of the bias.
template <typename T, typename Hidden, typename Seen>
void check_one(DType dtype, Hidden&& hidden, Seen&& seen) {
  const int64_t rows = 1 + up_to(70), keys = up_to(400);
  const bool has_keep = up_to(2) != 0, has_bias = up_to(2) == 0, has_alibi = up_to(4) == 0;
  Operand<uint8_t> keep(rows, keys);
  Operand<T> bias(rows, keys);
  keep.fill(rows, keys, [] { return uint8_t{0}; }, [] { return static_cast<uint8_t>(1 + up_to(254)); });
  bias.fill(rows, keys, hidden, seen);
  float slopes[kBatch * kHeads];
  for (float& slope : slopes) slope = static_cast<float>(up_to(8)) * 0.25f;
  AttentionParams params;
  if (has_keep) params.keep = keep.view;
  if (has_bias) params.bias = bias.view;
  params.bias_dtype = dtype;
  if (has_alibi) params.alibi = {slopes, up_to(1) * kHeads};
  if (!ScoreTerms::exist(params)) return;

  const int64_t sequence = up_to(kBatch - 1);
  const ScoreTerms terms(params, sequence, rows, keys);
  const auto kept = [&](int64_t head, int64_t row, int64_t key) {
    return !has_keep || keep.at(sequence, head, row, key) != 0;
  };
  const auto added = [&](int64_t head, int64_t row, int64_t key) {
    return has_bias ? value_of(bias.at(sequence, head, row, key)) : 0.0f;
  };
  const KeyRange range = terms.kept();
  expect(range.begin >= 0 && range.end <= keys, "kept stays inside the sequence");
  for (int64_t key = 0; key < keys; ++key) {
    if (range.begin <= key && key < range.end) continue;
    for (int64_t row = 0; row < rows; ++row) expect(!kept(up_to(kHeads - 1), row, key), "kept leaves out a kept key");
  }
  if (has_keep && keep.view.head_stride == 0 && keep.view.row_stride == 0 && range.end > range.begin) {
    expect(kept(0, 0, range.begin) && kept(0, 0, range.end - 1), "kept begins and ends at kept keys");
  }
  if (range.end == range.begin) return;

  // A panel: rows of one head after another, or the heads of a row.
  Column columns[kPanel];
  const int count = static_cast<int>(1 + up_to(kPanel - 1));
  const bool heads_of_rows = up_to(1) == 0;
  const int64_t first_row = up_to(rows - 1), first_head = up_to(kHeads - 1);
  for (int c = 0; c < count; ++c) {
    columns[c] = heads_of_rows ? Column{std::min(first_row + c / kHeads, rows - 1), c % kHeads}
                               : Column{std::min(first_row + c, rows - 1), first_head};
  }
  const int64_t first_key = range.begin + up_to(range.end - range.begin - 1);
  const int64_t num_keys = 1 + up_to(std::min<int64_t>(127, range.end - first_key - 1));

  bool all_masked = has_keep, all_biased = has_bias, none_hidden = !has_bias && !has_alibi;
  for (int c = 0; c < count; ++c) {
    for (int64_t key = first_key; key < first_key + num_keys; ++key) {
      const bool is_kept = kept(columns[c].head, columns[c].row, key);
      all_masked = all_masked && !is_kept;
      all_biased = all_biased && added(columns[c].head, columns[c].row, key) < kLeastTerm;
      none_hidden = none_hidden && is_kept;
    }
  }
  const TileSeen summary = terms.seen(columns, count, first_key, num_keys);
  expect((summary == TileSeen::kNone) == (all_masked || all_biased), "seen: hidden tiles, and only those, are kNone");
  expect((summary == TileSeen::kAll) == none_hidden, "seen: kAll is where nothing is added and nothing hides");

  std::vector<float> buffer(static_cast<size_t>((num_keys + 16) * kPanel + 16));
  float* written = buffer.data();
  while (reinterpret_cast<uintptr_t>(written) % 64 != 0) ++written;
  terms.write(columns, count, first_key, num_keys, written);
  for (int c = count; c < kPanel; ++c) {
    for (int64_t key = 0; key < num_keys; ++key) {
      expect(written[key * kPanel + c] < kLeastTerm, "write: columns that are not there are hidden");
    }
  }
  for (int c = 0; c < count; ++c) {
    const auto [row, head] = columns[c];
    const float slope = has_alibi ? slopes[sequence * params.alibi.batch_stride + head] : 0.0f;
    for (int64_t key = 0; key < num_keys; ++key) {
      const float term = written[key * kPanel + c];
      const float plain = added(head, row, first_key + key);
      if (!kept(head, row, first_key + key) || plain < kLeastTerm) {
        expect(term < kLeastTerm, "write: what hides is below kLeastTerm");
        continue;
      }
      const float distance = std::fabs(static_cast<float>(row + keys - rows - first_key - key));
      const float size = std::fabs(plain) + slope * distance;
      expect(std::fabs(term - (plain - slope * distance)) <= 1e-6f * size, "write: the sum");
    }
  }
}

}  // namespace

int main() {
  for (int draw = 0; draw < 1500; ++draw) {
    check_one<float>(
        DType::kFloat32, [] { return one_of<float>({-kInfinity, std::numeric_limits<float>::lowest(), -1.1e38f}); },
        [] { return one_of<float>({0.0f, -3.5f, 2.25f, -9.9e37f}); });
    check_one<BFloat16>(
        DType::kBFloat16, [] { return one_of<BFloat16>({BFloat16{0xff80}, BFloat16{0xff7f}, BFloat16{0xfe97}}); },
        [] { return one_of<BFloat16>({BFloat16{0}, BFloat16{0xc060}, BFloat16{0x4010}, BFloat16{0xfe95}}); });
  }
  return 0;
}
