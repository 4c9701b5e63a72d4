// Sums over rows for one ISA level: the gradient of an additive bias, over all that it repeats, and the column sums of
// the probabilities. An item owns what it writes and adds in a fixed order, so that threads change no bit.
#include "arch/scratch.h"
#include "attention/cpu/head_panel.h"
#include "attention/cpu/isa.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

HeadPanelScratch thread_panel(const AttentionParams& params) {
  HeadPanelScratch scratch;
  const int64_t floats = HeadPanelScratch::carve(params, nullptr, scratch);
  auto* base = static_cast<float*>(cpu::thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
  HeadPanelScratch::carve(params, base, scratch);
  return scratch;
}

constexpr int64_t pieces_of(int64_t total, int64_t piece) { return (total + piece - 1) / piece; }

void clear_sums(float* sums, int64_t keys) {
  for (int64_t i = 0; i < keys * kPanel; i += F32::kLanes) F32::zero().store(sums + i);
}

float sum_of_columns(const float* sums) {
  F32 total = F32::zero();
  for (int column = 0; column < kPanel; column += F32::kLanes) total = total + F32::load(sums + column);
  return total.sum();
}

// delta = rowsum(dO * O) - dLSE, its products summed as those of dP are: where one key has all the weight, dP - delta
// is exactly zero.
void write_delta(const AttentionBackwardParams& params, const HeadPanel& panel, const HeadPanelScratch& scratch,
                 float* delta) {
  const int64_t dim = padded_dim(params.forward.head_dim_v);
  for (int column = 0; column < kPanel; column += F32::kLanes) {
    F32 total = F32::zero();
    int64_t n = dim <= kMostProducts ? dim : kPartProducts;
    for (int64_t first = 0; first < dim; first += n) {
      const int64_t end = dim - first < n ? dim : first + n;
      F32 sum = F32::zero();
      for (int64_t d = first; d < end; ++d) {
        const int64_t at = d * kPanel + column;
        sum = fma(F32::load(scratch.outs + at), F32::load(scratch.douts + at), sum);
      }
      total = first == 0 ? sum : total + sum;
    }
    total.store(delta + column);
  }
  if (params.dlse.data == nullptr) return;
  for (int c = 0; c < panel.count(); ++c) {
    if (panel.has_weight(c)) delta[c] -= panel.statistic(params.dlse, c);
  }
}

// Some rows of one (batch, head) of the bias, or all rows if it repeats them, against some of its keys.
class BiasGradient {
 public:
  explicit BiasGradient(const AttentionBackwardParams& params)
      : params_(params),
        forward_(params.forward),
        by_batch_(params.dbias.batch_stride != 0),
        by_head_(params.dbias.head_stride != 0),
        by_row_(params.dbias.row_stride != 0),
        by_key_(params.dbias.key_stride != 0) {}

  int64_t num_items() const {
    if (forward_.batch == 0 || forward_.seqlen_q == 0 || forward_.seqlen_k == 0) return 0;
    return (by_batch_ ? forward_.batch : 1) * (by_head_ ? forward_.heads_q : 1) * row_pieces() * key_pieces();
  }

  void run(int64_t item, const HeadPanelScratch& scratch) const {
    const int64_t keys_at = item % key_pieces(), rows_at = item / key_pieces() % row_pieces();
    const int64_t owner = item / key_pieces() / row_pieces(), heads = by_head_ ? forward_.heads_q : 1;
    const int64_t batch = owner / heads, head = owner % heads;
    const int64_t begin = by_key_ ? keys_at * kPassChunk : 0;
    const int64_t rest = forward_.seqlen_k - begin;
    const int64_t end = begin + (by_key_ && rest > kPassChunk ? kPassChunk : rest);
    clear_sums(scratch.sums, by_key_ ? end - begin : 1);

    HeadPanel panel(forward_, scratch);
    for (int64_t b = batch; b < (by_batch_ ? batch + 1 : forward_.batch); ++b) {
      for (int64_t h = head; h < (by_head_ ? head + 1 : forward_.heads_q); ++h) {
        const int64_t first = by_row_ ? rows_at * kPanel : 0, last = by_row_ ? first + 1 : forward_.seqlen_q;
        for (int64_t row = first; row < last; row += kPanel) {
          panel.start(b, h, row);
          add_panel(panel, scratch, begin, end);
        }
      }
    }
    dispatch(forward_.bias_dtype, [&]<typename T>(T) { write<T>(panel, scratch.sums, batch, head, begin, end); });
  }

 private:
  int64_t row_pieces() const { return by_row_ ? pieces_of(forward_.seqlen_q, kPanel) : 1; }
  int64_t key_pieces() const { return by_key_ ? pieces_of(forward_.seqlen_k, kPassChunk) : 1; }

  void add_panel(const HeadPanel& panel, const HeadPanelScratch& scratch, int64_t begin, int64_t end) const {
    alignas(64) float delta[kPanel];
    panel.pack(params_.dout, forward_.head_dim_v, scratch.douts);
    panel.pack(forward_.out, forward_.head_dim_v, scratch.outs);
    write_delta(params_, panel, scratch, delta);
    const bool dropout = forward_.dropout.rng_state != nullptr;
    for (int64_t first = begin; first < end; first += kPassTile) {
      const int64_t n = end - first < kPassTile ? end - first : kPassTile;
      if (!panel.sees(first, n)) continue;
      panel.multiply(forward_.k, forward_.head_dim, first, n, scratch.queries, scratch.keys, scratch.scores);
      panel.multiply(forward_.v, forward_.head_dim_v, first, n, scratch.douts, scratch.values, scratch.dscores);
      if (dropout) panel.write_dropout_factors(first, n);
      float* sums = scratch.sums + (by_key_ ? (first - begin) * kPanel : 0);
      panel.for_each_probability(first, n, [&](int64_t at, int column, Mask seen, F32 p) {
        F32 dp = F32::load(scratch.dscores + at);
        if (dropout) {
          const F32 kept = F32::load(scratch.dropout + at);
          dp = select(kept > F32::zero(), dp * kept, F32::zero());
        }
        float* sum = sums + (by_key_ ? at : column);
        (F32::load(sum) + select(seen, p * (dp - F32::load(delta + column)), F32::zero())).store(sum);
      });
    }
  }

  template <typename T>
  void write(const HeadPanel& panel, float* sums, int64_t batch, int64_t head, int64_t begin, int64_t end) const {
    const ScoresView& view = params_.dbias;
    T* base =
        static_cast<T*>(view.data) + batch * view.batch_stride + head * view.head_stride + begin * view.key_stride;
    const auto row = [&](int c) { return base + panel.column(c).row * view.row_stride; };
    if (by_row_ && by_key_) {
      alignas(64) float ones[kPanel];
      T* rows[kPanel] = {};
      for (float& one : ones) one = 1.0f;
      for (int c = 0; c < panel.count(); ++c) rows[c] = row(c);
      unpack_columns(sums, end - begin, ones, rows);
    } else if (by_row_) {
      for (int c = 0; c < panel.count(); ++c) F32::set1(sums[c]).store_n(row(c), 1);
    } else {
      for (int64_t key = 0; key < (by_key_ ? end - begin : 1); ++key) {
        F32::set1(sum_of_columns(sums + key * kPanel)).store_n(base + key, 1);
      }
    }
  }

  const AttentionBackwardParams& params_;
  const AttentionParams& forward_;
  const bool by_batch_, by_head_, by_row_, by_key_;
};

}  // namespace

void attention_bias_gradient(const AttentionBackwardParams& params, const ParallelFor& parallel) {
  const BiasGradient gradient(params);
  for_each_item(
      parallel, gradient.num_items(), [&] { return thread_panel(params.forward); },
      [&](int64_t item, const HeadPanelScratch& scratch) { gradient.run(item, scratch); });
}

void attention_column_sums(const AttentionParams& params, const RowsView& sums, const ParallelFor& parallel) {
  const int64_t chunks = pieces_of(params.seqlen_k, kPassChunk);
  for_each_item(
      parallel, params.batch * params.heads_q * chunks, [&] { return thread_panel(params); },
      [&](int64_t item, const HeadPanelScratch& scratch) {
        const int64_t batch = item / chunks / params.heads_q, head = item / chunks % params.heads_q;
        const int64_t begin = item % chunks * kPassChunk, rest = params.seqlen_k - begin;
        const int64_t end = begin + (rest < kPassChunk ? rest : kPassChunk);
        clear_sums(scratch.sums, end - begin);
        HeadPanel panel(params, scratch);
        for (int64_t row = 0; row < params.seqlen_q; row += kPanel) {
          panel.start(batch, head, row);
          for (int64_t first = begin; first < end; first += kPassTile) {
            const int64_t n = end - first < kPassTile ? end - first : kPassTile;
            if (!panel.sees(first, n)) continue;
            panel.multiply(params.k, params.head_dim, first, n, scratch.queries, scratch.keys, scratch.scores);
            float* tile = scratch.sums + (first - begin) * kPanel;
            panel.for_each_probability(first, n, [&](int64_t at, int, Mask seen, F32 p) {
              (F32::load(tile + at) + select(seen, p, F32::zero())).store(tile + at);
            });
          }
        }
        float* out = sums.data + batch * sums.batch_stride + head * sums.head_stride + begin;
        for (int64_t key = 0; key < end - begin; ++key) out[key] = sum_of_columns(scratch.sums + key * kPanel);
      });
}

}  // namespace flagattn::FLAGATTN_ISA
