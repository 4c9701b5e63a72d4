// The gradient of a bias, a pass of its own: a block owns a tile of it, passes by all that it repeats, makes S and dP
// again and adds dS up in registers. Nothing is shared between blocks, so the order of the sums is fixed.
#pragma once

#include "arch/ptx/barrier.cuh"
#include "attention/cuda/sm80/backward_products.cuh"
#include "attention/cuda/sm80/backward_stream.cuh"
#include "attention/cuda/sm80/backward_terms.cuh"

namespace flagattn::sm80 {

template <typename Element, int kHeadDim, bool kSmall = false>
using BiasTraits = BackwardTraits<Element, kHeadDim, true, bias_tile(kHeadDim, kSmall)>;

struct BackwardBiasArguments {
  AttentionBackwardParams params;
  BiasSchedule schedule;
  BackwardWorkspace workspace;
  GradientScale scale;
};

// Where a thread of the block keeps its element (row, key) of the sums: fp32, over the tiles of P and dS.
template <typename Traits>
FLAGATTN_DEVICE ptx::SharedAddress sum_address(ptx::SharedAddress base, int row, int key) {
  static_assert(sizeof(float) * Traits::kBlockM * Traits::kBlockN ==
                sizeof(Traits::Tiles::weights) + sizeof(Traits::Tiles::dscores));
  return base + Traits::kWeights + (row * Traits::kBlockN + key) * 4;
}

// Starts copying what one tile of queries of one head meets in one tile of keys.
template <typename Traits>
FLAGATTN_DEVICE void start_loading_pair(ptx::SharedAddress base, const BackwardBiasArguments& arguments,
                                        const VisibleBand& band, int sequence, int head, int first_row, int first_key) {
  using Element = typename Traits::Element;
  const AttentionParams& p = arguments.params.forward;
  const BackwardWorkspace& workspace = arguments.workspace;
  const int head_k = head / static_cast<int>(p.heads_q / p.heads_k);
  const SequenceRows q_rows{0, band.rows}, k_rows{0, static_cast<int>(p.seqlen_k)};
  const float* statistics =
      workspace.statistics +
      workspace.statistics_of(workspace.tile_of(false, sequence, 0, head, first_row / workspace.block_m)) +
      first_row % workspace.block_m;
  const auto load_queries = [&](uint32_t to, const HeadsView& view, int64_t columns) {
    start_loading_seeing_rows<Traits::kBlockM, Traits::kHeadDim, Traits::kThreads>(
        base + to, head_rows<const Element>(view, false, sequence, q_rows, head, columns), first_row,
        band.first_seeing_row(), statistics);
  };
  const auto load_keys = [&](uint32_t to, const HeadsView& view, int64_t columns) {
    start_loading_tile<Traits::kBlockN, Traits::kHeadDim, Traits::kThreads>(
        base + to, head_rows<const Element>(view, false, sequence, k_rows, head_k, columns), first_key);
  };
  load_queries(Traits::kQueries, p.q, p.head_dim);
  load_queries(Traits::kDouts, arguments.params.dout, p.head_dim_v);
  load_keys(Traits::kKeys, p.k, p.head_dim);
  load_keys(Traits::kValues, p.v, p.head_dim_v);
  constexpr int kChunks = Traits::kBlockM * 4 / 16;
  const int chunk = ptx::thread_index_now();
  if (chunk < 2 * kChunks) {
    const float* from = statistics + (chunk < kChunks ? chunk * 4 : workspace.block_m + (chunk - kChunks) * 4);
    ptx::cp_async_16(base + Traits::kStatistics + chunk * 16, from, true);
  }
  ptx::cp_async_commit();
}

// Adds what the sums lie in, in a fixed order, over the dimensions that the bias repeats; `rows` and `keys` of the tile
// exist.
template <typename Traits, typename Store>
FLAGATTN_DEVICE void write_sums(ptx::SharedAddress base, const BiasSchedule& schedule, int rows, int keys,
                                Store&& store) {
  const int thread = ptx::thread_index();
  const auto at = [&](int row, int key) { return ptx::load_shared<float>(sum_address<Traits>(base, row, key)); };
  if (schedule.by_row && schedule.by_key) {
    for (int n = thread; n < Traits::kBlockM * Traits::kBlockN; n += Traits::kThreads) {
      const int row = n / Traits::kBlockN, key = n % Traits::kBlockN;
      if (row < rows && key < keys) store(row, key, at(row, key));
    }
    return;
  }
  float sum = 0.0f;
  if (schedule.by_row) {
    for (int key = 0; thread < rows && key < Traits::kBlockN; ++key) sum += at(thread, key);
    if (thread < rows) store(thread, 0, sum);
    return;
  }
  for (int row = 0; thread < Traits::kBlockN && row < Traits::kBlockM; ++row) sum += at(row, thread);
  if (schedule.by_key) {
    if (thread < keys) store(0, thread, sum);
    return;
  }
  ptx::sync_block();
  if (thread < Traits::kBlockN) ptx::store_shared(sum_address<Traits>(base, 0, thread), sum);
  ptx::sync_block();
  sum = 0.0f;
  for (int key = 0; thread == 0 && key < Traits::kBlockN; ++key) sum += at(0, key);
  if (thread == 0) store(0, 0, sum);
}

template <typename Traits>
FLAGATTN_KERNEL(Traits::kThreads, 1)
attention_bias_gradient_kernel(FLAGATTN_KERNEL_ARGUMENT BackwardBiasArguments arguments) {
  using Element = typename Traits::Element;
  constexpr int kHeadDim = Traits::kHeadDim, kBlockM = Traits::kBlockM, kBlockN = Traits::kBlockN;
  const AttentionParams& p = arguments.params.forward;
  const ptx::SharedAddress base = ptx::shared_address(&ptx::shared_storage<typename Traits::Tiles>());
  const BiasSchedule& schedule = arguments.schedule;
  const auto work = schedule.work_of(ptx::block_index());
  const VisibleBand band(PartShape{{p.seqlen_q, p.seqlen_k, p.mask}});
  const WarpParts<Traits> warp(ptx::thread_index());
  const ThreadScores<Traits> place(base, warp);
  const auto query_rows = left_operand<Depth::kAlongRows, kHeadDim>(base, warp.query_row, warp.lane);
  const auto key_rows = right_rows<kHeadDim>(base, warp.key, warp.lane);
  const bool drops = p.dropout.rng_state != nullptr;

  // One pair of tiles after the other.
  typename Traits::Scores sums = {};
  const auto add_pair = [&](int sequence, int head, int first_row, int first_key) {
    ptx::sync_block();  // the readers of the pair before are done
    start_loading_pair<Traits>(base, arguments, band, sequence, head, first_row, first_key);
    ptx::cp_async_wait<0>();
    ptx::sync_block();
    typename Traits::Scores weights = {}, dweights;
    multiply<Element, kHeadDim / 16>(weights, query_rows.of_tile(Traits::kQueries), key_rows.of_tile(Traits::kKeys));
    if (arguments.scale.caps) cap_scores<Traits>(weights, arguments.scale.input_scale, place);
    join_terms<Traits>(weights, p, arguments.scale.term_unit, sequence, head, warp, band, first_row, first_key);
    find_exponents<Traits>(weights, base + Traits::kStatistics, arguments.scale.exponent_scale, place);
    if (!band.covers(first_row, kBlockM, first_key, kBlockN)) {
      hide_keys<Traits>(weights, band, place, first_row, first_key);
    }
    find_weights<Traits>(weights, p, sequence, head, warp, first_row, first_key);
    const ptx::SharedAddress deltas = base + Traits::kStatistics + kBlockM * 4;
    start_from_deltas<Traits>(dweights, deltas, place, drops ? 0.0f : -1.0f);
    multiply<Element, kHeadDim / 16>(dweights, query_rows.of_tile(Traits::kDouts), key_rows.of_tile(Traits::kValues));
    if (drops) drop_gradients<Traits>(weights, dweights, p.dropout.scale, deltas, place);
    for_each_pair<Traits>([&](int i, int j, int h) {
      FLAGATTN_UNROLL_ALL
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        const float weight = weights[i][j][e];  // zero: hidden, and its gradient may be NaN
        if (weight != 0.0f) sums[i][j][e] = std::fma(weight, dweights[i][j][e], sums[i][j][e]);
      }
    });
  };
  for (int sequence = work.batch.first; sequence < work.batch.end; ++sequence) {
    for (int head = work.heads.first; head < work.heads.end; ++head) {
      for (int query_tile = work.query_tiles.first; query_tile < work.query_tiles.end; ++query_tile) {
        const TileRange seen = band.key_tiles(query_tile, kBlockM, kBlockN);
        const int first = seen.first > work.key_tiles.first ? seen.first : work.key_tiles.first;
        const int end = seen.end < work.key_tiles.end ? seen.end : work.key_tiles.end;
        for (int tile = first; tile < end; ++tile) add_pair(sequence, head, query_tile * kBlockM, tile * kBlockN);
      }
    }
  }

  // The way out, through shared memory that slopes of the soft cap have lain in.
  ptx::sync_block();
  for_each_pair<Traits>([&](int i, int j, int h) {
    FLAGATTN_UNROLL_ALL
    for (int e = 0; e < 2; ++e) {
      ptx::store_shared(sum_address<Traits>(base, place.row + 16 * i + 8 * h, place.key + 8 * j + e),
                        sums[i][j][2 * h + e]);
    }
  });
  ptx::sync_block();
  const ScoresView& view = arguments.params.dbias;
  const int first_row = schedule.by_row ? work.query_tiles.first * kBlockM : 0;
  const int first_key = schedule.by_key ? work.key_tiles.first * kBlockN : 0;
  const int64_t first = work.batch.first * view.batch_stride + work.heads.first * view.head_stride +
                        first_row * view.row_stride + first_key * view.key_stride;
  const auto of_tile = [](int64_t left, int most) { return left < most ? static_cast<int>(left) : most; };
  write_sums<Traits>(base, schedule, of_tile(p.seqlen_q - first_row, kBlockM), of_tile(p.seqlen_k - first_key, kBlockN),
                     [&](int row, int key, float sum) {
                       const int64_t at = first + row * view.row_stride + key * view.key_stride;
                       if (p.bias_dtype == DType::kFloat32) {
                         ptx::store_global(static_cast<float*>(view.data) + at, sum);
                       } else {
                         const uint32_t bits = p.bias_dtype == DType::kBFloat16 ? ptx::pack<BFloat16>(sum, 0.0f)
                                                                                : ptx::pack<Float16>(sum, 0.0f);
                         ptx::store_global(static_cast<uint16_t*>(view.data) + at, static_cast<uint16_t>(bits));
                       }
                     });
}

}  // namespace flagattn::sm80
