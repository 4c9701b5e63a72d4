// Attention backward, plain and piecewise, for one ISA level (docs/kernels/attention_cpu_backward.md).
#include <cstring>

#include "attention/cpu/backward_kernels.h"
#include "attention/cpu/backward_worker.h"
#if defined(__AMX_BF16__)
#include "attention/cpu/backward_cell_worker.h"
#endif

namespace flagattn::FLAGATTN_ISA {
namespace {

#if defined(__AMX_BF16__)
using Bf16Worker = BackwardCellWorker;
#else
using Bf16Worker = BackwardWorker;
#endif

template <typename Worker>
struct Tag {};

// body(Tag<Worker>{}) for what computes gradients of that dtype.
template <typename Body>
decltype(auto) with_worker(DType dtype, Body&& body) {
  return dtype == DType::kBFloat16 ? body(Tag<Bf16Worker>{}) : body(Tag<BackwardWorker>{});
}

size_t scratch_bytes(const AttentionBackwardParams& params) {
  return with_worker(params.forward.dtype,
                     [&]<typename Worker>(Tag<Worker>) { return Worker::scratch_bytes(params.forward); });
}

void start(const AttentionBackwardParams& params, void* scratch) {
  with_worker(params.forward.dtype, [&]<typename Worker>(Tag<Worker>) { Worker::start(params.forward, scratch); });
}

void run_part(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
              const KeyGradients& share) {
  with_worker(params.forward.dtype, [&]<typename Worker>(Tag<Worker>) { Worker(params, part, scratch, share).run(); });
}

// One of the sums, over one tile.
void add_tile(const float* share, float* sum, int64_t tile, int64_t dim, bool first) {
  const int64_t floats = kBackwardKeyTile * round_up_to(dim, KeyGradients::kRowQuantum);
  share += tile * floats;
  sum += tile * floats;
  if (first) {
    std::memcpy(sum, share, static_cast<size_t>(floats) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < floats; i += F32::kLanes) (F32::load(sum + i) + F32::load(share + i)).store(sum + i);
}

void add_share(const AttentionBackwardParams& params, const BackwardPart& part, const KeyGradients& share,
               const KeyGradients& sum) {
  constexpr uint8_t kNear = KeyGradients::kNear, kFar = KeyGradients::kFar;
  const int64_t dim = params.forward.head_dim, dim_v = params.forward.head_dim_v;
  for (int64_t tile = 0; tile * kBackwardKeyTile < part.sequence.seqlen_k; ++tile) {
    const uint8_t there = share.touched[tile], before = sum.touched[tile];
    if (there != 0) add_tile(share.dv, sum.dv, tile, dim_v, before == 0);
    if (there & kNear) add_tile(share.dk, sum.dk, tile, dim, !(before & kNear));
    if (there & kFar) add_tile(share.dk2, sum.dk2, tile, dim, !(before & kFar));
    sum.touched[tile] = static_cast<uint8_t>(before | there);
  }
}

// Rows of one tile, times `factor`; null `sums` stand for zeros.
template <typename T>
void write_rows(const float* sums, int64_t n, int64_t dim, float factor, T* dst, int64_t stride) {
  const int64_t ld = round_up_to(dim, KeyGradients::kRowQuantum);
  const F32 scale = F32::set1(factor);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < dim; d += F32::kLanes) {
      const F32 x = sums == nullptr ? F32::zero() : F32::load(sums + i * ld + d) * scale;
      if (d + F32::kLanes <= dim) {
        x.store(dst + i * stride + d);
      } else {
        x.store_n(dst + i * stride + d, dim - d);
      }
    }
  }
}

template <typename T>
void write_tensor(const HeadsView& view, const BackwardPart& part, int64_t tile, int64_t dim, float factor,
                  const float* sums) {
  const int64_t first = tile * kBackwardKeyTile, rest = part.sequence.seqlen_k - first;
  T* dst = static_cast<T*>(view.data) + part.sequence.batch * view.batch_stride +
           (part.sequence.first_k + first) * view.row_stride + part.head_k * view.head_stride;
  if (sums != nullptr) sums += first * round_up_to(dim, KeyGradients::kRowQuantum);
  write_rows(sums, rest < kBackwardKeyTile ? rest : kBackwardKeyTile, dim, factor, dst, view.row_stride);
}

void write(const AttentionBackwardParams& params, const BackwardPart& part, const KeyGradients& sum) {
  const AttentionParams& forward = params.forward;
  dispatch(forward.dtype, [&]<typename T>(T) {
    for (int64_t tile = 0; tile * kBackwardKeyTile < part.sequence.seqlen_k; ++tile) {
      const uint8_t touched = sum.touched[tile];
      write_tensor<T>(params.dv, part, tile, forward.head_dim_v, 1.0f, touched != 0 ? sum.dv : nullptr);
      write_tensor<T>(params.dk, part, tile, forward.head_dim, forward.softmax_scale,
                      touched & KeyGradients::kNear ? sum.dk : nullptr);
      if (forward.is_piecewise()) {
        write_tensor<T>(params.dk2, part, tile, forward.head_dim, forward.softmax_scale,
                        touched & KeyGradients::kFar ? sum.dk2 : nullptr);
      }
    }
  });
}

}  // namespace

extern const BackwardKernels backward_kernels = {scratch_bytes, start, run_part, add_share, write};

}  // namespace flagattn::FLAGATTN_ISA
