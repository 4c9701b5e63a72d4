// What joins the scores of a panel against a key tile besides q.k. Biases, ALiBi and masks become one array of terms,
// [key][column] like the scores, some of which hide; tiles that no column sees are found before anything is computed.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/pack.h"
#include "attention/mask.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

// A column of a panel: a query row of a sequence, of one head.
struct Column {
  int64_t row;
  int64_t head;
};

inline constexpr float kHidden = -std::numeric_limits<float>::infinity();
// Terms below this hide as -inf does: the lowest float32 and bfloat16 stand for it in many masks, and an LSE of their
// size would leave nothing of the scores.
inline constexpr float kLeastTerm = -1e38f;

// ---- Booleans, eight at a time; any byte that is not 0 is true ----

inline uint64_t eight_bools(const uint8_t* keep) {
  uint64_t word;
  std::memcpy(&word, keep, sizeof(word));
  return word;
}
constexpr bool has_zero_byte(uint64_t word) {
  return ((word - 0x0101010101010101u) & ~word & 0x8080808080808080u) != 0;
}

inline bool any_true(const uint8_t* keep, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    if (eight_bools(keep + i) != 0) return true;
  }
  for (; i < n; ++i) {
    if (keep[i] != 0) return true;
  }
  return false;
}

inline bool all_true(const uint8_t* keep, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    if (has_zero_byte(eight_bools(keep + i))) return false;
  }
  for (; i < n; ++i) {
    if (keep[i] == 0) return false;
  }
  return true;
}

// The keys from the first true one to the last.
inline KeyRange kept_range(const uint8_t* keep, int64_t n) {
  int64_t begin = 0, end = n;
  while (begin + 8 <= n && eight_bools(keep + begin) == 0) begin += 8;
  while (begin < n && keep[begin] == 0) ++begin;
  while (end - 8 >= begin && eight_bools(keep + end - 8) == 0) end -= 8;
  while (end > begin && keep[end - 1] == 0) --end;
  return {begin, end};
}

constexpr bool hides(float x) { return x < kLeastTerm; }
constexpr bool hides(BFloat16 x) { return x.bits > 0xfe96 && x.bits <= 0xff80; }  // -9.97e37 does not
constexpr bool hides(Float16 x) { return x.bits == 0xfc00; }

template <typename T>
inline bool all_hide(const T* bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!hides(bias[i])) return false;
  }
  return true;
}

// ---- The terms of one sequence ----

enum class TileSeen : uint8_t { kNone, kSome, kAll };  // of the keys of a tile, by the columns of a panel

class ScoreTerms {
 public:
  ScoreTerms() = default;
  ScoreTerms(const AttentionParams& params, int64_t sequence, int64_t seqlen_q, int64_t seqlen_k)
      : params_(&params), sequence_(sequence), aligned_(seqlen_k - seqlen_q), kept_{0, seqlen_k} {
    if (!has_keep() || !same_for_rows(params.keep)) return;
    const uint8_t* keep = row_of<uint8_t>(params.keep, {0, 0});
    if (params.keep.key_stride == 0) {
      if (seqlen_k > 0 && *keep == 0) kept_ = {0, 0};
      masks_keys_ = false;
      return;
    }
    kept_ = kept_range(keep, seqlen_k);
    masks_keys_ = !all_true(keep + kept_.begin, kept_.end - kept_.begin);
  }

  // Terms are added to scores in units of the exponent; else they only hide.
  static bool are_additive(const AttentionParams& params) {
    return params.bias.data != nullptr || params.alibi.slopes != nullptr;
  }
  static bool exist(const AttentionParams& params) { return are_additive(params) || params.keep.data != nullptr; }

  // Where keys are masked for all rows alike, those before the first and behind the last one are cut off here, and
  // often nothing is left to be masked.
  KeyRange kept() const { return kept_; }
  bool empty() const { return !has_keep() && !are_additive(*params_); }

  TileSeen seen(const Column* columns, int count, int64_t first_key, int64_t num_keys) const {
    TileSeen result = TileSeen::kAll;
    if (has_keep()) {
      const ScoresView& view = params_->keep;
      const bool repeated = view.key_stride == 0;
      const int64_t n = repeated ? 1 : num_keys;
      bool none = true, all = true;
      for_each_row<uint8_t>(view, columns, count, repeated ? 0 : first_key, [&](const uint8_t* keep) {
        none = none && !any_true(keep, n);
        all = all && all_true(keep, n);
        return none || all;
      });
      if (none) return TileSeen::kNone;
      if (!all) result = TileSeen::kSome;
    }
    if (params_->bias.data != nullptr) {
      const ScoresView& view = params_->bias;
      const bool repeated = view.key_stride == 0;
      bool none = true;
      dispatch(params_->bias_dtype, [&]<typename T>(T) {
        for_each_row<T>(view, columns, count, repeated ? 0 : first_key, [&](const T* bias) {
          none = all_hide(bias, repeated ? 1 : num_keys);
          return none;
        });
      });
      if (none) return TileSeen::kNone;
    }
    return are_additive(*params_) ? TileSeen::kSome : result;
  }

  // terms[key][column] of a tile, for whole vectors of columns and keys in quanta of eight. Keys from num_keys on get
  // anything but NaN. Columns from `count` on are hidden: what stands in a key that no row sees must not get into the
  // gradients through rows that are not there.
  FLAGATTN_KERNEL void write(const Column* columns, int count, int64_t first_key, int64_t num_keys,
                             float* terms) const {
    const int64_t end = padded_dim(num_keys);
    if (params_->bias.data != nullptr) {
      dispatch(params_->bias_dtype, [&]<typename T>(T) { write_bias<T>(columns, count, first_key, num_keys, terms); });
    } else {
      for (int64_t i = 0; i < end * kPanel; i += F32::kLanes) F32::zero().store(terms + i);
    }
    if (params_->alibi.slopes != nullptr) add_alibi(columns, count, first_key, end, terms);
    if (has_keep()) hide(columns, count, first_key, num_keys, terms);
    if (count < kPanel) hide_padding(count, end, terms);
  }

 private:
  bool has_keep() const { return params_->keep.data != nullptr && masks_keys_; }
  static bool same_for_rows(const ScoresView& view) { return view.head_stride == 0 && view.row_stride == 0; }

  template <typename T>
  const T* row_of(const ScoresView& view, const Column& column) const {
    return static_cast<const T*>(view.data) + sequence_ * view.batch_stride + column.head * view.head_stride +
           column.row * view.row_stride;
  }

  // Calls body(row) for the columns' different rows, one after another while it returns true.
  template <typename T, typename Body>
  void for_each_row(const ScoresView& view, const Column* columns, int count, int64_t first_key, Body&& body) const {
    const T* before = nullptr;
    for (int c = 0; c < count; ++c) {
      const T* row = row_of<T>(view, columns[c]);
      if (c > 0 && row == before) continue;
      if (!body(row + first_key)) return;
      before = row;
    }
  }

  template <typename T>
  void write_bias(const Column* columns, int count, int64_t first_key, int64_t num_keys, float* terms) const {
    const ScoresView& view = params_->bias;
    if (view.key_stride != 0) {
      const T* rows[kPanel] = {};
      for (int c = 0; c < count; ++c) rows[c] = row_of<T>(view, columns[c]) + first_key;
      pack_columns(rows, num_keys, 1.0f, terms);
      return;
    }
    alignas(64) float once[kPanel] = {};
    for (int c = 0; c < count; ++c) once[c] = widened(*row_of<T>(view, columns[c]));
    for (int64_t key = 0; key < padded_dim(num_keys); ++key) std::memcpy(terms + key * kPanel, once, sizeof(once));
  }
  template <typename T>
  static float widened(const T& x) {
    alignas(64) float lanes[F32::kLanes];
    F32::load_n(&x, 1).store(lanes);
    return lanes[0];
  }

  void add_alibi(const Column* columns, int count, int64_t first_key, int64_t num_keys, float* terms) const {
    alignas(64) float slopes[kPanel] = {}, aligned[kPanel] = {};
    for (int c = 0; c < count; ++c) {
      slopes[c] = -params_->alibi.slopes[sequence_ * params_->alibi.batch_stride + columns[c].head];
      aligned[c] = static_cast<float>(columns[c].row + aligned_ - first_key);
    }
    for (int64_t key = 0; key < num_keys; ++key) {
      const F32 number = F32::set1(static_cast<float>(key));
      for (int column = 0; column < kPanel; column += F32::kLanes) {
        float* at = terms + key * kPanel + column;
        const F32 distance = abs(F32::load(aligned + column) - number);
        fma(F32::load(slopes + column), distance, F32::load(at)).store(at);
      }
    }
  }

  void hide(const Column* columns, int count, int64_t first_key, int64_t num_keys, float* terms) const {
    const ScoresView& view = params_->keep;
    if (view.key_stride == 0) {
      for (int c = 0; c < count; ++c) {
        if (*row_of<uint8_t>(view, columns[c]) != 0) continue;
        for (int64_t key = 0; key < num_keys; ++key) terms[key * kPanel + c] = kHidden;
      }
      return;
    }
    if (same_for_rows(view)) {
      const uint8_t* keep = row_of<uint8_t>(view, columns[0]) + first_key;
      for (int64_t key = 0; key < num_keys; ++key) {
        if (keep[key] != 0) continue;
        for (int column = 0; column < kPanel; column += F32::kLanes) {
          F32::set1(kHidden).store(terms + key * kPanel + column);
        }
      }
      return;
    }
    // A few keys at a time become rows of floats, 0 or -inf, and then columns.
    constexpr int64_t kKeys = 32;
    alignas(64) float hidden_rows[kPanel][kKeys], hidden[kKeys * kPanel];
    for (int64_t first = 0; first < num_keys; first += kKeys) {
      const int64_t n = num_keys - first < kKeys ? num_keys - first : kKeys;
      const float* rows[kPanel] = {};
      const uint8_t* before = nullptr;
      for (int c = 0; c < count; ++c) {
        const uint8_t* keep = row_of<uint8_t>(view, columns[c]) + first_key + first;
        if (keep == before) {
          rows[c] = rows[c - 1];
          continue;
        }
        for (int64_t i = 0; i < n; ++i) hidden_rows[c][i] = keep[i] != 0 ? 0.0f : kHidden;
        rows[c] = hidden_rows[c];
        before = keep;
      }
      pack_columns(rows, n, 1.0f, hidden);
      float* at = terms + first * kPanel;
      for (int64_t i = 0; i < n * kPanel; i += F32::kLanes) {
        const F32 mask = F32::load(hidden + i);
        select(mask < F32::zero(), mask, F32::load(at + i)).store(at + i);
      }
    }
  }

  static void hide_padding(int count, int64_t num_keys, float* terms) {
    alignas(64) float padding[kPanel] = {};
    for (int c = count; c < kPanel; ++c) padding[c] = kHidden;
    for (int column = count / F32::kLanes * F32::kLanes; column < kPanel; column += F32::kLanes) {
      const F32 mask = F32::load(padding + column);
      for (int64_t key = 0; key < num_keys; ++key) {
        float* at = terms + key * kPanel + column;
        select(mask < F32::zero(), mask, F32::load(at)).store(at);
      }
    }
  }

  const AttentionParams* params_ = nullptr;
  int64_t sequence_ = 0;
  int64_t aligned_ = 0;  // the key that row 0 is aligned with
  KeyRange kept_{0, 0};
  bool masks_keys_ = true;
};

FLAGATTN_INLINE Mask is_hidden(F32 term) { return term < F32::set1(kLeastTerm); }

// score = score * unit + term, where the term does not hide the key, whatever its score is. Terms that only hide leave
// the scores in their own unit.
template <bool kAdditive>
FLAGATTN_INLINE F32 with_term(F32 score, F32 unit, F32 term) {
  const F32 joined = kAdditive ? fma(score, unit, term) : score;
  return select(is_hidden(term), F32::set1(kHidden), joined);
}

}  // namespace flagattn::FLAGATTN_ISA
