// Runs the sm_80 attention forward kernel on one problem and compares it with a float64 computation. Built plain, with
// AddressSanitizer and with ThreadSanitizer, and with planted faults; driven by the pytest files beside it.
//
//   run_forward dtype=bf16 head_dim=64 heads_q=4 heads_k=2 lengths=33:70,128:64 [packed=1] [right=0] [left=17]
//   [softcap=0] [scale=0.125] [threshold=30] [bias=1] [keep=1] [alibi=1] [sinks=1] [dropout=0.3]
//               [offsets_q=0:1000:70] [offsets_k=...] [seed=0] [copies=lazy] [workers=1] [fault=missing_barrier]
//
// With offsets the kernel is given those instead of the lengths' (packed=1), and nothing is compared: they are wrong,
// and AddressSanitizer watches where they lead.
//
// Prints the largest errors relative to the rule's bound; exits with 1 if one exceeds it, with 2 if the runner stopped
// the kernel, and with a sanitizer's own status if that reported.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "arch/philox.h"
#include "arch/ptx/math.cuh"
#include "attention/cuda/sm80/forward.h"
#include "attention/mask.h"
#include "host_exec/faults.h"
#include "host_exec/host_exec.h"

namespace flagattn {
namespace {

struct Problem {
  DType dtype = DType::kBFloat16;
  bool packed = false;
  int64_t heads_q = 2, heads_k = 1, head_dim = 64, head_dim_v = 64;
  std::vector<int64_t> lengths_q, lengths_k;  // per sequence; dense problems have one length for all
  std::vector<int32_t> offsets_q, offsets_k;  // told to the kernel instead of theirs, if there are any
  MaskParams mask;
  float softcap = 0.0f, scale = 0.0f;
  bool piecewise = false, bias = false, keep = false, alibi = false, sinks = false;
  int64_t dist_threshold = 0;
  float dropout = 0.0f;

  int64_t batch() const { return static_cast<int64_t>(lengths_q.size()); }
};

uint16_t narrow(DType dtype, float value) {
  const uint32_t pair = dtype == DType::kBFloat16 ? ptx::pack<BFloat16>(value, 0.0f) : ptx::pack<Float16>(value, 0.0f);
  return static_cast<uint16_t>(pair);
}

double widen(DType dtype, uint16_t bits) {
  if (dtype == DType::kBFloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<double>(half);
}

// (total rows, heads, head_dim), exactly as large as its contents, so that AddressSanitizer sees the first byte behind.
struct Operand {
  uint16_t* data;
  int64_t heads, head_dim, count;

  Operand(int64_t rows, int64_t heads, int64_t head_dim)
      : heads(heads), head_dim(head_dim), count(rows * heads * head_dim) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, count * sizeof(uint16_t)) != 0) std::abort();
    data = static_cast<uint16_t*>(memory);
    std::memset(data, 0xff, count * sizeof(uint16_t));
  }
  ~Operand() { std::free(data); }
  Operand(const Operand&) = delete;

  void fill(DType dtype, std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) data[i] = narrow(dtype, normal(random));
  }
  uint16_t* row(int64_t row, int64_t head) const { return data + (row * heads + head) * head_dim; }
  HeadsView view(int64_t rows_per_batch) const {
    return {data, rows_per_batch * heads * head_dim, heads * head_dim, head_dim};
  }
};

struct Errors {
  double out = 0.0, lse = 0.0;
  void add_out(double error) { out = error <= out ? out : std::isnan(error) ? INFINITY : error; }
  void add_lse(double error) { lse = error <= lse ? lse : std::isnan(error) ? INFINITY : error; }
};

struct Solution {
  std::vector<double> out;
  double lse;
};

// What joins the scores, each exactly as large as it must be. Bias and mask are (heads_q, longest_q, longest_k).
struct Terms {
  std::vector<float> bias, slopes, sinks;
  std::vector<uint8_t> keep;
  int64_t rng_state[2] = {0x123456789abcdef, 77};
  int64_t longest_q, longest_k;

  Terms(const Problem& p, int64_t longest_q, int64_t longest_k, std::mt19937& random)
      : longest_q(longest_q), longest_k(longest_k) {
    std::normal_distribution<float> normal;
    const int64_t scores = p.heads_q * longest_q * longest_k;
    for (int64_t i = 0; p.bias && i < scores; ++i) bias.push_back(normal(random));
    for (int64_t i = 0; p.keep && i < scores; ++i) keep.push_back(random() % 3 != 0);
    for (int64_t i = 0; p.alibi && i < p.heads_q; ++i) slopes.push_back(0.05f * static_cast<float>(i + 1));
    for (int64_t i = 0; p.sinks && i < p.heads_q; ++i) sinks.push_back(normal(random));
  }

  void add_to(const Problem& p, AttentionParams& params) {
    const int64_t row = longest_k, head = longest_q * longest_k;
    if (p.bias) params.bias = {bias.data(), 0, head, row, 1};
    if (p.keep) params.keep = {keep.data(), 0, head, row, 1};
    if (p.alibi) params.alibi = {slopes.data(), 0};
    if (p.sinks) params.sinks = sinks.data();
    if (p.dropout > 0.0f) params.dropout = {rng_state, last_dropped(p), 1.0f / (1.0f - p.dropout)};
  }
  static uint32_t last_dropped(const Problem& p) {
    return static_cast<uint32_t>(std::ceil(static_cast<double>(p.dropout) * 4294967296.0) - 1.0);
  }

  // Of the score at (head, row, key).
  int64_t place(int64_t head, int64_t row, int64_t key) const { return (head * longest_q + row) * longest_k + key; }
  bool drops(const Problem& p, int64_t sequence, int64_t head, int64_t row, int64_t key) const {
    const uint64_t seed = rng_state[0], stream = rng_state[1] + sequence * p.heads_q + head;
    const PhiloxWords words =
        philox(static_cast<uint32_t>(key / 4), static_cast<uint32_t>(row), static_cast<uint32_t>(stream),
               static_cast<uint32_t>(stream >> 32), static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    return p.dropout > 0.0f && words.word[key % 4] <= last_dropped(p);
  }
};

struct Row {
  int64_t sequence, row, head;
  int64_t first_q, first_k;  // of the sequence
  MaskShape shape;
};

struct Pair {
  const Operand& q;
  const Operand& k;
};

Solution reference_row(const Problem& p, const Pair& near, const Pair& far, const Operand& v, const Terms& terms,
                       const Row& at) {
  const int64_t head = at.head, head_k = head / (p.heads_q / p.heads_k), row_q = at.first_q + at.row;
  const int64_t first_k = at.first_k, aligned = at.row + at.shape.seqlen_k - at.shape.seqlen_q;
  const KeyRange keys = at.shape.keys_of_row(at.row);
  Solution solution{std::vector<double>(p.head_dim_v, 0.0), -INFINITY};
  std::vector<double> scores;
  double highest = -INFINITY, sum = 0.0;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    double score = 0.0;
    const auto& [q, k] = p.piecewise && aligned - j >= p.dist_threshold ? far : near;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      score += widen(p.dtype, q.row(row_q, head)[d]) * widen(p.dtype, k.row(first_k + j, head_k)[d]);
    }
    score *= p.scale;
    if (p.softcap > 0.0f) score = p.softcap * std::tanh(score / p.softcap);
    if (p.bias) score += terms.bias[terms.place(head, at.row, j)];
    if (p.alibi) score -= terms.slopes[head] * std::fabs(static_cast<double>(aligned - j));
    if (p.keep && terms.keep[terms.place(head, at.row, j)] == 0) score = -INFINITY;
    scores.push_back(score);
    highest = std::fmax(highest, score);
  }
  if (p.sinks) highest = std::fmax(highest, terms.sinks[head]);
  if (p.sinks) sum = std::exp(terms.sinks[head] - highest);
  for (size_t i = 0; i < scores.size() && highest > -INFINITY; ++i) {
    double weight = std::exp(scores[i] - highest);
    sum += weight;
    weight *=
        terms.drops(p, at.sequence, head, at.row, keys.begin + static_cast<int64_t>(i)) ? 0.0 : 1.0 / (1.0 - p.dropout);
    for (int64_t d = 0; d < p.head_dim_v; ++d) {
      solution.out[d] += weight * widen(p.dtype, v.row(first_k + keys.begin + static_cast<int64_t>(i), head_k)[d]);
    }
  }
  if (sum > 0.0) {
    for (double& x : solution.out) x /= sum;
    solution.lse = highest + std::log(sum);
  }
  return solution;
}

int run(const Problem& p) {
  std::vector<int32_t> cu_q{0}, cu_k{0};
  int64_t longest_q = 0, longest_k = 0;
  for (int64_t b = 0; b < p.batch(); ++b) {
    cu_q.push_back(cu_q.back() + static_cast<int32_t>(p.lengths_q[b]));
    cu_k.push_back(cu_k.back() + static_cast<int32_t>(p.lengths_k[b]));
    longest_q = std::max(longest_q, p.lengths_q[b]);
    longest_k = std::max(longest_k, p.lengths_k[b]);
  }
  const int64_t total_q = cu_q.back(), total_k = cu_k.back();
  std::mt19937 random(7);
  Operand q(total_q, p.heads_q, p.head_dim), k(total_k, p.heads_k, p.head_dim), v(total_k, p.heads_k, p.head_dim_v);
  Operand q2(p.piecewise ? total_q : 0, p.heads_q, p.head_dim), k2(p.piecewise ? total_k : 0, p.heads_k, p.head_dim);
  Operand out(total_q, p.heads_q, p.head_dim_v);
  for (Operand* operand : {&q, &k, &v, &q2, &k2}) operand->fill(p.dtype, random);
  Terms terms(p, longest_q, longest_k, random);
  std::vector<float> lse(total_q * p.heads_q, NAN);

  AttentionParams params;
  params.dtype = p.dtype;
  params.batch = p.batch();
  params.heads_q = p.heads_q;
  params.heads_k = p.heads_k;
  params.seqlen_q = longest_q;
  params.seqlen_k = longest_k;
  params.head_dim = p.head_dim;
  params.head_dim_v = p.head_dim_v;
  params.q = q.view(longest_q);
  params.k = k.view(longest_k);
  params.v = v.view(longest_k);
  params.out = out.view(longest_q);
  params.lse = p.packed ? RowsView{lse.data(), 0, total_q} : RowsView{lse.data(), p.heads_q * longest_q, longest_q};
  if (p.packed) {
    params.cu_seqlens_q = p.offsets_q.empty() ? cu_q.data() : p.offsets_q.data();
    params.cu_seqlens_k = p.offsets_k.empty() ? cu_k.data() : p.offsets_k.data();
    params.total_q = total_q;
    params.total_k = total_k;
  }
  params.softmax_scale = p.scale;
  params.softcap = p.softcap;
  params.mask = p.mask;
  if (p.piecewise) {
    params.q2 = q2.view(longest_q);
    params.k2 = k2.view(longest_k);
    params.dist_threshold = p.dist_threshold;
  }
  terms.add_to(p, params);
  const Status status = sm80::run_attention_forward(params, {});
  if (!status.ok()) {
    std::printf("stopped: %s\n", status.message.c_str());
    return 2;
  }
  if (!p.offsets_q.empty() || !p.offsets_k.empty()) return 0;

  // The weights are rounded once and the output once; either moves a result by half a unit in its last place.
  const double unit = p.dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
  Errors errors;
  double largest = 0.0;
  for (int64_t b = 0; b < p.batch(); ++b) {
    const MaskShape shape{p.lengths_q[b], p.lengths_k[b], p.mask};
    for (int64_t head = 0; head < p.heads_q; ++head) {
      for (int64_t i = 0; i < p.lengths_q[b]; ++i) {
        const int64_t row = cu_q[b] + i;
        const Solution expected = reference_row(p, {q, k}, {q2, k2}, v, terms, {b, i, head, cu_q[b], cu_k[b], shape});
        for (int64_t d = 0; d < p.head_dim_v; ++d) {
          errors.add_out(std::fabs(widen(p.dtype, out.row(row, head)[d]) - expected.out[d]));
          largest = std::fmax(largest, std::fabs(expected.out[d]));
        }
        const float got = p.packed ? lse[head * total_q + row] : lse[(b * p.heads_q + head) * longest_q + i];
        errors.add_lse(std::isinf(expected.lse) ? (got == expected.lse ? 0.0 : INFINITY)
                                                : std::fabs(got - expected.lse));
      }
    }
  }
  const double bound = 2.0 * unit * largest, lse_bound = 2e-5;
  const auto& counters = host_exec::counters();
  std::printf("out error %.3e (bound %.3e), lse error %.3e (bound %.3e), %lld products, %lld bank conflicts\n",
              errors.out, bound, errors.lse, lse_bound,
              static_cast<long long>(counters[host_exec::Instruction::kMatrixProduct]),
              static_cast<long long>(counters.bank_conflicts));
  return errors.out <= bound && errors.lse <= lse_bound ? 0 : 1;
}

Problem parse(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    given[argument.substr(0, equals)] = argument.substr(equals + 1);
  }
  const auto number = [&](const char* name, double otherwise) {
    return given.count(name) ? std::stod(given[name]) : otherwise;
  };
  Problem p;
  p.dtype = given["dtype"] == "fp16" ? DType::kFloat16 : DType::kBFloat16;
  p.packed = number("packed", 0) != 0;
  p.heads_q = static_cast<int64_t>(number("heads_q", 2));
  p.heads_k = static_cast<int64_t>(number("heads_k", 1));
  p.head_dim = static_cast<int64_t>(number("head_dim", 64));
  p.head_dim_v = static_cast<int64_t>(number("head_dim_v", static_cast<double>(p.head_dim)));
  p.mask = {static_cast<int64_t>(number("left", -1)), static_cast<int64_t>(number("right", -1))};
  p.softcap = static_cast<float>(number("softcap", 0));
  p.scale = static_cast<float>(number("scale", 1 / std::sqrt(static_cast<double>(p.head_dim))));
  p.piecewise = given.count("threshold") != 0;
  p.dist_threshold = static_cast<int64_t>(number("threshold", 0));
  p.bias = number("bias", 0) != 0;
  p.keep = number("keep", 0) != 0;
  p.alibi = number("alibi", 0) != 0;
  p.sinks = number("sinks", 0) != 0;
  p.dropout = static_cast<float>(number("dropout", 0));
  const std::string lengths = given.count("lengths") ? given["lengths"] : "64:64";
  for (const char* cursor = lengths.c_str(); *cursor != '\0';) {
    char* end;
    p.lengths_q.push_back(std::strtoll(cursor, &end, 10));
    p.lengths_k.push_back(std::strtoll(end + 1, &end, 10));
    cursor = *end == ',' ? end + 1 : end;
  }
  const auto offsets = [&](const char* name) {
    std::vector<int32_t> values;
    std::istringstream text(given[name]);
    for (std::string value; std::getline(text, value, ':');) values.push_back(std::stoi(value));
    return values;
  };
  p.offsets_q = offsets("offsets_q");
  p.offsets_k = offsets("offsets_k");
  host_exec::Options& options = host_exec::options();
  options.seed = static_cast<uint32_t>(number("seed", 0));
  options.workers = static_cast<int>(number("workers", 1));
  const std::string copies = given["copies"];
  options.copies = copies == "eager"    ? host_exec::CopyTiming::kEager
                   : copies == "random" ? host_exec::CopyTiming::kRandom
                                        : host_exec::CopyTiming::kLazy;
  host_exec::plant(given["fault"], static_cast<int>(number("faulty_launch", host_exec::kEveryLaunch)));
  return p;
}

}  // namespace
}  // namespace flagattn

int main(int argc, char** argv) { return flagattn::run(flagattn::parse(argc, argv)); }
