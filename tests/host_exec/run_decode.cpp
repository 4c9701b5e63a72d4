// Runs the sm_80 kernels for attention over caches on one problem and compares them with a float64 computation. Built
// plain, with AddressSanitizer and with ThreadSanitizer, and with planted faults; driven by test_sanitizers_decode.py.
//
//   run_decode lengths=1:700,3:40 [dtype=bf16] [head_dim=64] [heads_q=4] [heads_k=2] [packed=1] [page_size=16]
//   [left=17] [right=0] [threshold=30] [alibi=1] [sinks=1] [append=2] [half_dim=16] [seed=0] [copies=lazy] [workers=1]
//   [fault=missing_barrier]
//
// A length is that of the queries and that of the keys. With `append` the last rows of the keys come to the cache in
// the same run, rotated where half_dim is given. Prints the largest errors; exits with 1 if one exceeds its bound, with
// 2 if the runner stopped the kernel, and with a sanitizer's own status if that reported.
#include <algorithm>
#include <vector>

#include "attention/cuda/sm80/append.h"
#include "attention/cuda/sm80/decode.h"
#include "attention/mask.h"
#include "attention/schedule.h"
#include "host_exec/faults.h"
#include "host_exec/host_exec.h"
#include "tests/host_exec/fused/problem.h"

namespace flagattn::fused {
namespace {

struct Problem {
  explicit Problem(const Options& options) : dtype(options.dtype()), packed(options.whole("packed") != 0) {
    if (dtype == DType::kFloat32) dtype = DType::kBFloat16;
    heads_q = options.whole("heads_q", 4);
    heads_k = options.whole("heads_k", 2);
    head_dim = options.whole("head_dim", 64);
    page_size = options.whole("page_size");
    append = options.whole("append");
    half_dim = options.whole("half_dim");
    mask = {options.whole("left", -1), options.whole("right", -1)};
    piecewise = !options.text("threshold").empty();
    dist_threshold = options.whole("threshold");
    alibi = options.whole("alibi") != 0;
    sinks = options.whole("sinks") != 0;
    const std::string lengths = options.text("lengths", "1:64");
    for (const char* cursor = lengths.c_str(); *cursor != '\0';) {
      char* end;
      lengths_q.push_back(std::strtoll(cursor, &end, 10));
      lengths_k.push_back(std::strtoll(end + 1, &end, 10));
      cursor = *end == ',' ? end + 1 : end;
    }
    longest_q = *std::max_element(lengths_q.begin(), lengths_q.end());
    longest_k = *std::max_element(lengths_k.begin(), lengths_k.end());
  }

  DType dtype;
  bool packed, piecewise, alibi, sinks;
  int64_t heads_q, heads_k, head_dim, page_size, append, half_dim, dist_threshold, longest_q, longest_k;
  MaskParams mask;
  std::vector<int64_t> lengths_q, lengths_k;

  int64_t batch() const { return static_cast<int64_t>(lengths_q.size()); }
  int64_t pages() const { return page_size == 0 ? 0 : (longest_k + page_size - 1) / page_size; }  // of a sequence
  int64_t cache_rows() const { return batch() * (page_size == 0 ? longest_k : pages() * page_size); }
};

HeadsView view_of(const Operand& operand, int64_t rows_in_batch, int64_t heads) {
  return {operand.data, rows_in_batch * operand.stride, operand.stride, operand.cols / heads};
}

struct Row {
  double lse;
  std::vector<double> out;
};

// Row `row` of a sequence, as params say: from the caches as they are now.
Row reference_row(const AttentionParams& p, const Operand* const (&queries)[2], const Operand* const (&keys)[2],
                  const Operand& values, int64_t index, int64_t row, int64_t head) {
  const Sequence sequence = sequence_of(p, index);
  const int64_t head_k = head / (p.heads_q / p.heads_k), dim = p.head_dim;
  const int64_t aligned = row + sequence.seqlen_k - sequence.seqlen_q;
  const int64_t row_q = p.is_packed() ? sequence.first_q + row : index * p.seqlen_q + row;
  const KeyRange seen = MaskShape{sequence.seqlen_q, sequence.seqlen_k, p.mask}.keys_of_row(row);
  Row result{-INFINITY, std::vector<double>(static_cast<size_t>(dim), 0.0)};
  double highest = p.sinks == nullptr ? -INFINITY : p.sinks[head];
  std::vector<double> scores;
  const auto row_in_cache = [&](int64_t key) {
    const KeyPlace place = place_of_row(sequence, sequence.first_k + key);
    return place.batch * (p.k.batch_stride / p.k.row_stride) + place.row;
  };
  for (int64_t key = seen.begin; key < seen.end; ++key) {
    const int far = p.is_piecewise() && aligned - key >= p.dist_threshold;
    double score = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      score += queries[far]->at(row_q, head * dim + d) * keys[far]->at(row_in_cache(key), head_k * dim + d);
    }
    score *= p.softmax_scale;
    if (p.alibi.slopes != nullptr) score -= p.alibi.slopes[head] * std::fabs(static_cast<double>(aligned - key));
    scores.push_back(score);
    highest = std::fmax(highest, score);
  }
  double sum = p.sinks == nullptr ? 0.0 : std::exp(p.sinks[head] - highest);
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - highest);
    sum += weight;
    for (int64_t d = 0; d < dim; ++d) {
      result.out[d] += weight * values.at(row_in_cache(seen.begin + static_cast<int64_t>(i)), head_k * dim + d);
    }
  }
  if (sum == 0.0) return result;
  for (double& x : result.out) x /= sum;
  result.lse = highest + std::log(sum);
  return result;
}

int run(const Problem& p) {
  const int64_t batch = p.batch();
  std::vector<int32_t> cu_q{0}, seqlens, table;
  for (int64_t b = 0; b < batch; ++b) {
    cu_q.push_back(cu_q.back() + static_cast<int32_t>(p.lengths_q[b]));
    seqlens.push_back(static_cast<int32_t>(p.lengths_k[b] - p.append));
    for (int64_t i = 0; i < p.pages(); ++i) {  // from the last page of the cache to the first
      table.push_back(static_cast<int32_t>(batch * p.pages() - 1 - (b * p.pages() + i)));
    }
  }
  const int64_t rows_q = p.packed ? cu_q.back() : batch * p.longest_q, rows_k = p.cache_rows();
  const int64_t in_batch = p.page_size == 0 ? p.longest_k : p.page_size;
  std::mt19937 random(7);
  Operand q(p.dtype, rows_q, p.heads_q * p.head_dim), q2(p.dtype, rows_q, p.heads_q * p.head_dim);
  Operand k(p.dtype, rows_k, p.heads_k * p.head_dim), k2(p.dtype, rows_k, p.heads_k * p.head_dim);
  Operand v(p.dtype, rows_k, p.heads_k * p.head_dim), fresh(p.dtype, batch * p.append + 1, p.heads_k * p.head_dim);
  Operand out(p.dtype, rows_q, p.heads_q * p.head_dim), turned(p.dtype, rows_q, p.heads_q * p.head_dim);
  Operand cos(DType::kFloat32, p.longest_k, std::max<int64_t>(p.half_dim, 1)), sin(DType::kFloat32, cos.rows, cos.cols);
  for (Operand* operand : {&q, &q2, &k, &k2, &v, &fresh, &cos, &sin}) operand->fill(random);
  std::vector<float> lse(static_cast<size_t>(rows_q * p.heads_q), NAN), slopes, sinks;
  for (int64_t head = 0; head < p.heads_q; ++head) {
    slopes.push_back(0.05f * static_cast<float>(head + 1));
    sinks.push_back(0.3f * static_cast<float>(head));
  }

  AttentionParams params;
  params.dtype = p.dtype;
  params.batch = batch;
  params.heads_q = p.heads_q;
  params.heads_k = p.heads_k;
  params.seqlen_q = p.longest_q;
  params.seqlen_k = p.page_size == 0 ? p.longest_k : p.pages() * p.page_size;
  params.head_dim = params.head_dim_v = p.head_dim;
  params.q = view_of(q, p.longest_q, p.heads_q);
  params.k = view_of(k, in_batch, p.heads_k);
  params.v = view_of(v, in_batch, p.heads_k);
  params.out = view_of(out, p.longest_q, p.heads_q);
  params.lse = p.packed ? RowsView{lse.data(), 0, rows_q} : RowsView{lse.data(), p.heads_q * p.longest_q, p.longest_q};
  if (p.packed) {
    params.cu_seqlens_q = cu_q.data();
    params.total_q = rows_q;
  }
  params.softmax_scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  params.mask = p.mask;
  if (p.piecewise) {
    params.q2 = view_of(q2, p.longest_q, p.heads_q);
    params.k2 = view_of(k2, in_batch, p.heads_k);
    params.dist_threshold = p.dist_threshold;
  }
  if (p.alibi) params.alibi = {slopes.data(), 0};
  if (p.sinks) params.sinks = sinks.data();
  params.cache.present = true;
  params.cache.rows = p.page_size == 0 ? batch : batch * p.pages();
  params.cache.capacity = params.seqlen_k;
  params.cache.appended = p.append;
  params.cache.seqlens = seqlens.data();
  if (p.page_size != 0) {
    params.cache.block_table = table.data();
    params.cache.block_table_stride = p.pages();
    params.cache.page_size = p.page_size;
  }

  // New rows and turned queries first, as csrc/torch does it.
  Verdict verdict;
  if (p.append > 0) {
    sm80::AppendParams rows;
    rows.from = view_of(fresh, p.append, p.heads_k);
    rows.to = params.k;
    rows.rows = p.append;
    rows.heads = p.heads_k;
    rows.head_dim = p.head_dim;
    rows.half_dim = p.half_dim;
    rows.num_positions = cos.rows;
    rows.cos = {cos.data, 0, cos.stride};
    rows.sin = {sin.data, 0, sin.stride};
    sm80::AppendParams queries = rows;
    queries.from = params.q;
    queries.to = view_of(turned, p.longest_q, p.heads_q);
    queries.rows = p.longest_q;
    queries.heads = p.heads_q;
    queries.to_cache = false;
    if (!verdict.ran(sm80::run_append(params, queries, {})) || !verdict.ran(sm80::run_append(params, rows, {})))
      return 2;
    params.q = queries.to;
  }
  std::vector<float> workspace(static_cast<size_t>(sm80::attention_decode_workspace(params)), NAN);
  if (!verdict.ran(sm80::run_attention_decode(params, workspace.data(), {}))) return 2;
  const auto& counters = host_exec::counters();
  std::printf("%lld bank conflicts in the last kernel\n", static_cast<long long>(counters.bank_conflicts));

  const Operand* const queries[2] = {p.append > 0 ? &turned : &q, &q2};
  const Operand* const keys[2] = {&k, &k2};
  Operand expected(DType::kFloat32, rows_q, p.heads_q * p.head_dim);
  double worst_lse = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t row = 0; row < (p.packed ? p.lengths_q[b] : p.longest_q); ++row) {
      const int64_t at = p.packed ? cu_q[b] + row : b * p.longest_q + row;
      for (int64_t head = 0; head < p.heads_q; ++head) {
        const Row right = reference_row(params, queries, keys, v, b, row, head);
        for (int64_t d = 0; d < p.head_dim; ++d) {
          expected.set(at, head * p.head_dim + d, static_cast<float>(right.out[d]));
        }
        const float got = p.packed ? lse[head * rows_q + at] : lse[(b * p.heads_q + head) * p.longest_q + row];
        const double error = got == right.lse ? 0.0 : std::fabs(got - right.lse);
        worst_lse = error <= worst_lse ? worst_lse : std::isnan(error) ? INFINITY : error;
      }
    }
  }
  verdict.compare("out", out, 2.0, [&](int64_t row, int64_t col) { return expected.at(row, col); });
  std::printf("lse error %.3e\n", worst_lse);
  return worst_lse > 2e-5 ? 1 : verdict.exit_code();
}

}  // namespace
}  // namespace flagattn::fused

int main(int argc, char** argv) {
  using namespace flagattn;
  const fused::Options options(argc, argv);
  host_exec::options().seed = static_cast<uint32_t>(options.whole("seed"));
  host_exec::options().workers = static_cast<int>(options.whole("workers", 1));
  const std::string copies = options.text("copies", "lazy");
  host_exec::options().copies = copies == "eager"    ? host_exec::CopyTiming::kEager
                                : copies == "random" ? host_exec::CopyTiming::kRandom
                                                     : host_exec::CopyTiming::kLazy;
  host_exec::plant(options.text("fault"), static_cast<int>(options.whole("faulty_launch", host_exec::kEveryLaunch)));
  return fused::run(fused::Problem(options));
}
