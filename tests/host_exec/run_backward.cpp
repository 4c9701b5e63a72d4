// Runs the sm_80 attention forward and backward kernels on one problem and compares the gradients with a float64
// computation. Built plain, with AddressSanitizer and with ThreadSanitizer, and with planted faults; driven by
// test_sanitizers_backward.py.
//
//   run_backward dtype=bf16 head_dim=64 heads_q=4 heads_k=2 lengths=33:70,128:64 [packed=1] [right=0] [left=17]
//   [softcap=0] [threshold=50] [terms=1] [seed=0] [copies=lazy] [workers=1] [resident=0] [capability=80]
//   [fault=missing_barrier] [offsets_q=0:1000:70] [offsets_k=...]
//
// A threshold makes it piecewise. Terms are a bias of (1, heads, rows, keys) with its gradient, ALiBi, a mask of keys,
// sinks and dropout; dense problems only. With offsets the kernels are given those instead of the lengths' (packed=1),
// and nothing is compared: they are wrong, and AddressSanitizer watches where they lead.
//
// Exits with 1 where a gradient is wrong, with 2 if the runner stopped a kernel, and with a sanitizer's own status if
// that reported. Faults are planted in the backward only.
#include <algorithm>
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
#include "arch/ptx/convert.cuh"
#include "arch/ptx/math.cuh"
#include "attention/cuda/sm80/backward.h"
#include "attention/cuda/sm80/forward.h"
#include "attention/mask.h"
#include "host_exec/faults.h"
#include "host_exec/host_exec.h"

namespace flagattn {
namespace {

std::map<std::string, std::string> given;
double number(const char* name, double otherwise) { return given.count(name) ? std::stod(given[name]) : otherwise; }

// (total rows, heads, head_dim), exactly as large as its contents, so that AddressSanitizer sees the first byte behind.
struct Operand {
  int64_t rows, heads, head_dim;
  bool is_bfloat16 = given["dtype"] != "fp16";
  uint16_t* data;

  Operand(int64_t rows, int64_t heads, int64_t head_dim) : rows(rows), heads(heads), head_dim(head_dim) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, rows * heads * head_dim * 2) != 0) std::abort();
    data = static_cast<uint16_t*>(memory);
    std::memset(data, 0xff, rows * heads * head_dim * 2);
  }
  ~Operand() { std::free(data); }
  Operand(const Operand&) = delete;

  void fill(std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * heads * head_dim; ++i) {
      const float value = normal(random);
      data[i] = static_cast<uint16_t>(is_bfloat16 ? ptx::pack<BFloat16>(value, 0.0f) : ptx::pack<Float16>(value, 0.0f));
    }
  }
  double at(int64_t row, int64_t head, int64_t column) const {
    const uint16_t bits = data[(row * heads + head) * head_dim + column];
    return is_bfloat16 ? ptx::unpack<BFloat16>(bits).low : ptx::unpack<Float16>(bits).low;
  }
  HeadsView view(int64_t rows_per_batch) const {
    return {data, rows_per_batch * heads * head_dim, heads * head_dim, head_dim};
  }
};

using Gradient = std::vector<double>;

// A gradient's memory, and what it must hold.
struct Result {
  const char* name;
  Operand ours;
  Gradient expected;

  Result(const char* name, const Operand& like)
      : name(name), ours(like.rows, like.heads, like.head_dim), expected(like.rows * like.heads * like.head_dim) {}
  double* row(int64_t row, int64_t head) { return &expected[(row * ours.heads + head) * ours.head_dim]; }
};

// The operands of a part of the keys, near or far, and the gradients.
struct Part {
  const Operand &q, &k;
  Result &dq, &dk;
};

// What joins the scores, for batch, head, row and key; and the gradients of bias and sinks.
struct Terms {
  bool present;
  std::vector<float> bias, dbias, slopes, sinks, dsinks, sink_shares;
  std::vector<uint8_t> keep;
  std::vector<double> expected_dbias, expected_dsinks;
  int64_t rng_state[2] = {12345, 678};

  // The factor of a weight.
  double kept(const AttentionParams& p, int64_t batch, int64_t head, int64_t row, int64_t key) const {
    if (!present) return 1.0;
    const auto stream = static_cast<uint64_t>(rng_state[1] + batch * p.heads_q + head);
    const PhiloxWords words =
        philox(static_cast<uint32_t>(key / 4), static_cast<uint32_t>(row), static_cast<uint32_t>(stream),
               static_cast<uint32_t>(stream >> 32), static_cast<uint32_t>(rng_state[0]), 0);
    return words.word[key % 4] <= p.dropout.last_dropped ? 0.0 : p.dropout.scale;
  }
};

struct Place {
  int64_t batch, head, row;  // row of the sequence
  int64_t first_q, first_k;  // of the sequence
  MaskShape shape;
};

// Of one row: dP and dS from exact weights.
void add_row(const AttentionParams& p, const Place& at, const Part (&parts)[2], const Operand& v, const Operand& dout,
             double dlse, Result& dv, Terms& terms) {
  const int64_t head_k = at.head / (p.heads_q / p.heads_k), row = at.first_q + at.row;
  const KeyRange keys = at.shape.keys_of_row(at.row);
  const int64_t far_end = p.is_piecewise() ? at.shape.far_end(at.row, p.dist_threshold) : 0;
  const auto part_of = [&](int64_t key) -> const Part& { return parts[key < far_end ? 1 : 0]; };
  const auto bias_at = [&](int64_t key) { return (at.head * p.seqlen_q + at.row) * p.seqlen_k + key; };
  std::vector<double> weights, slopes, dweights;
  double highest = terms.present ? terms.sinks[at.head] : -INFINITY, sum = 0.0, delta = -dlse;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const Part& part = part_of(j);
    double score = 0.0, dweight = 0.0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      score += part.q.at(row, at.head, d) * part.k.at(at.first_k + j, head_k, d);
    }
    for (int64_t d = 0; d < p.head_dim_v; ++d) dweight += dout.at(row, at.head, d) * v.at(at.first_k + j, head_k, d);
    score *= p.softmax_scale;
    const double capped = p.softcap > 0.0f ? std::tanh(score / p.softcap) : 0.0;
    if (p.softcap > 0.0f) score = p.softcap * capped;
    if (terms.present) {
      const auto distance = static_cast<double>(at.row + p.seqlen_k - p.seqlen_q - j);
      score += terms.bias[bias_at(j)] - terms.slopes[at.head] * std::fabs(distance);
      if (terms.keep[at.batch * p.seqlen_k + j] == 0) score = -INFINITY;
    }
    weights.push_back(score);
    slopes.push_back((1.0 - capped * capped) * p.softmax_scale);
    dweights.push_back(dweight * terms.kept(p, at.batch, at.head, at.row, j));
    highest = std::fmax(highest, score);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - highest);
  const double sink = terms.present ? std::exp(terms.sinks[at.head] - highest) : 0.0;
  sum += sink;
  for (size_t i = 0; i < weights.size(); ++i) delta += (weights[i] /= sum) * dweights[i];
  if (terms.present) terms.expected_dsinks[at.head] -= sink / sum * delta;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t j = keys.begin + static_cast<int64_t>(i), key = at.first_k + j;
    const Part& part = part_of(j);
    const double dterm = weights[i] * (dweights[i] - delta), dscore = dterm * slopes[i];
    if (terms.present) terms.expected_dbias[bias_at(j)] += dterm;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      part.dq.row(row, at.head)[d] += dscore * part.k.at(key, head_k, d);
      part.dk.row(key, head_k)[d] += dscore * part.q.at(row, at.head, d);
    }
    const double weight = weights[i] * terms.kept(p, at.batch, at.head, at.row, j);
    for (int64_t d = 0; d < p.head_dim_v; ++d) dv.row(key, head_k)[d] += weight * dout.at(row, at.head, d);
  }
}

// P, dS and the results are rounded to 16 bits, and so was the output that delta is made of.
template <typename At>
bool is_close(const char* name, const Gradient& expected, bool is_bfloat16, At&& at) {
  double error = 0.0, largest = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(at(static_cast<int64_t>(i)) - expected[i]);
    error = difference <= error ? error : std::isnan(difference) ? INFINITY : difference;
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  const double bound = 6.0 * (is_bfloat16 ? 0x1p-8 : 0x1p-11) * largest;
  std::printf("%s error %.3e (bound %.3e) ", name, error, bound);
  return error <= bound;
}

std::vector<int32_t> offsets(const char* name) {
  std::vector<int32_t> values;
  std::istringstream text(given[name]);
  for (std::string value; std::getline(text, value, ':');) values.push_back(std::stoi(value));
  return values;
}

int run() {
  std::vector<int64_t> lengths_q, lengths_k;
  const std::string lengths = given.count("lengths") ? given["lengths"] : "64:64";
  for (const char* cursor = lengths.c_str(); *cursor != '\0';) {
    char* end;
    lengths_q.push_back(std::strtoll(cursor, &end, 10));
    lengths_k.push_back(std::strtoll(end + 1, &end, 10));
    cursor = *end == ',' ? end + 1 : end;
  }
  std::vector<int32_t> cu_q{0}, cu_k{0};
  for (size_t b = 0; b < lengths_q.size(); ++b) {
    cu_q.push_back(cu_q.back() + static_cast<int32_t>(lengths_q[b]));
    cu_k.push_back(cu_k.back() + static_cast<int32_t>(lengths_k[b]));
  }
  const int64_t total_q = cu_q.back(), total_k = cu_k.back();

  AttentionBackwardParams params;
  AttentionParams& p = params.forward;
  p.dtype = given["dtype"] == "fp16" ? DType::kFloat16 : DType::kBFloat16;
  p.batch = static_cast<int64_t>(lengths_q.size());
  p.heads_q = static_cast<int64_t>(number("heads_q", 2));
  p.heads_k = static_cast<int64_t>(number("heads_k", 1));
  p.head_dim = static_cast<int64_t>(number("head_dim", 64));
  p.head_dim_v = static_cast<int64_t>(number("head_dim_v", static_cast<double>(p.head_dim)));
  p.seqlen_q = *std::max_element(lengths_q.begin(), lengths_q.end());
  p.seqlen_k = *std::max_element(lengths_k.begin(), lengths_k.end());
  p.mask = {static_cast<int64_t>(number("left", -1)), static_cast<int64_t>(number("right", -1))};
  p.softcap = static_cast<float>(number("softcap", 0));
  p.softmax_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(p.head_dim)));
  const std::vector<int32_t> offsets_q = offsets("offsets_q"), offsets_k = offsets("offsets_k");
  const bool packed = number("packed", 0) != 0;
  if (packed) {
    p.cu_seqlens_q = offsets_q.empty() ? cu_q.data() : offsets_q.data();
    p.cu_seqlens_k = offsets_k.empty() ? cu_k.data() : offsets_k.data();
    p.total_q = total_q;
    p.total_k = total_k;
  }
  const bool piecewise = given.count("threshold") != 0;
  Operand q(total_q, p.heads_q, p.head_dim), k(total_k, p.heads_k, p.head_dim), v(total_k, p.heads_k, p.head_dim_v);
  Operand q2(total_q, p.heads_q, p.head_dim), k2(total_k, p.heads_k, p.head_dim);
  Operand out(total_q, p.heads_q, p.head_dim_v), dout(total_q, p.heads_q, p.head_dim_v);
  Result dq("dq", q), dk("dk", k), dv("dv", v), dq2("dq2", q), dk2("dk2", k);
  std::mt19937 random(7);
  for (Operand* operand : {&q, &k, &v, &dout, &q2, &k2}) operand->fill(random);
  std::vector<float> lse(total_q * p.heads_q, NAN), dlse(total_q * p.heads_q);
  for (float& value : dlse) value = std::normal_distribution<float>()(random);
  const auto rows = [&](std::vector<float>& values) {
    return packed ? RowsView{values.data(), 0, total_q} : RowsView{values.data(), p.heads_q * p.seqlen_q, p.seqlen_q};
  };
  p.q = q.view(p.seqlen_q), p.k = k.view(p.seqlen_k), p.v = v.view(p.seqlen_k), p.out = out.view(p.seqlen_q);
  p.lse = rows(lse), params.dlse = rows(dlse), params.dout = dout.view(p.seqlen_q);
  params.dq = dq.ours.view(p.seqlen_q), params.dk = dk.ours.view(p.seqlen_k), params.dv = dv.ours.view(p.seqlen_k);
  if (piecewise) {
    p.q2 = q2.view(p.seqlen_q), p.k2 = k2.view(p.seqlen_k),
    p.dist_threshold = static_cast<int64_t>(number("threshold", 0));
    params.dq2 = dq2.ours.view(p.seqlen_q), params.dk2 = dk2.ours.view(p.seqlen_k);
  }
  Terms terms;
  terms.present = number("terms", 0) != 0;
  if (terms.present) {
    const int64_t scores = p.heads_q * p.seqlen_q * p.seqlen_k;
    terms.bias.resize(scores), terms.dbias.assign(scores, NAN), terms.expected_dbias.resize(scores);
    for (float& value : terms.bias) value = std::normal_distribution<float>()(random);
    terms.slopes.assign(p.heads_q, 0.05f), terms.sinks.assign(p.heads_q, 1.5f), terms.dsinks.assign(p.heads_q, NAN);
    terms.expected_dsinks.resize(p.heads_q), terms.sink_shares.assign(lse.size(), NAN);
    for (int64_t i = 0; i < p.batch * p.seqlen_k; ++i) terms.keep.push_back(random() % 4 != 0);
    const ScoresView by_head{terms.bias.data(), 0, p.seqlen_q * p.seqlen_k, p.seqlen_k, 1};
    p.bias = params.dbias = by_head;
    params.dbias.data = terms.dbias.data();
    p.keep = {terms.keep.data(), p.seqlen_k, 0, 0, 1};
    p.alibi = {terms.slopes.data(), 0};
    p.sinks = terms.sinks.data(), params.dsinks = terms.dsinks.data(), params.dsink_shares = rows(terms.sink_shares);
    p.dropout = {terms.rng_state, 0x40000000, 4.0f / 3.0f};
  }
  std::vector<float> workspace(sm80::attention_backward_workspace(p), NAN);
  params.workspace = workspace.data();

  Status status = sm80::run_attention_forward(p, {});
  host_exec::plant(given["fault"], static_cast<int>(number("faulty_launch", host_exec::kEveryLaunch)));
  if (status.ok()) status = sm80::run_attention_backward(params, {});
  if (!status.ok()) {
    std::printf("stopped: %s\n", status.message.c_str());
    return 2;
  }
  if (!offsets_q.empty() || !offsets_k.empty()) return 0;

  const Part parts[2] = {{q, k, dq, dk}, {q2, k2, dq2, dk2}};
  for (int64_t b = 0; b < p.batch; ++b) {
    const MaskShape shape{lengths_q[b], lengths_k[b], p.mask};
    for (int64_t head = 0; head < p.heads_q; ++head) {
      for (int64_t i = 0; i < lengths_q[b]; ++i) {
        const float row_dlse =
            packed ? dlse[head * total_q + cu_q[b] + i] : dlse[(b * p.heads_q + head) * p.seqlen_q + i];
        add_row(p, {b, head, i, cu_q[b], cu_k[b], shape}, parts, v, dout, row_dlse, dv, terms);
      }
    }
  }
  bool right = true;
  for (const Result* result : {&dq, &dk, &dv, &dq2, &dk2}) {
    if (!piecewise && (result == &dq2 || result == &dk2)) continue;
    right &=
        is_close(result->name, result->expected, q.is_bfloat16, [&](int64_t i) { return result->ours.at(0, 0, i); });
  }
  if (terms.present) {
    right &= is_close("dbias", terms.expected_dbias, q.is_bfloat16, [&](int64_t i) { return terms.dbias[i]; });
    right &= is_close("dsinks", terms.expected_dsinks, q.is_bfloat16, [&](int64_t i) { return terms.dsinks[i]; });
  }
  std::printf("\n");
  return right ? 0 : 1;
}

}  // namespace
}  // namespace flagattn

int main(int argc, char** argv) {
  using namespace flagattn;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    given[argument.substr(0, equals)] = argument.substr(equals + 1);
  }
  host_exec::Options& options = host_exec::options();
  options.seed = static_cast<uint32_t>(number("seed", 0));
  options.workers = static_cast<int>(number("workers", 1));
  options.resident = static_cast<int>(number("resident", 0));
  options.compute_capability = static_cast<int>(number("capability", 80));
  options.copies = given["copies"] == "eager"    ? host_exec::CopyTiming::kEager
                   : given["copies"] == "random" ? host_exec::CopyTiming::kRandom
                                                 : host_exec::CopyTiming::kLazy;
  return run();
}
