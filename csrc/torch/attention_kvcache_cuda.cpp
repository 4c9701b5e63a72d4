// Attention over caches on CUDA: check shapes, enqueue the copies of new rows, attend. What only values tell (lengths,
// places, pages) the kernels clamp.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "attention/cuda/sm80/append.h"
#include "attention/cuda/sm80/decode.h"
#include "torch/attention_kvcache_ops.h"
#include "torch/cuda_stream.h"
#include "torch/cuda_values.h"

namespace flagattn {
namespace {

AttentionResults attend_checked(const AttentionArgs& args, AttentionParams& params) {
  AttentionResults results = empty_results(params, args.q);
  Tensor workspace = empty_like_device(args.q, ScalarType::Float, {sm80::attention_decode_workspace(params)});
  check(sm80::run_attention_decode(params, static_cast<float*>(output_data(workspace)),
                                   current_cuda_stream(args.q.get_device_index())),
        args.op);
  return results;
}

void append(const AttentionArgs& args, const AttentionParams& params, const sm80::AppendParams& rows) {
  check(sm80::run_append(params, rows, current_cuda_stream(args.q.get_device_index())), args.op);
}

sm80::AppendParams plain_rows(const AttentionParams& params, const NewRows& fresh) {
  sm80::AppendParams rows;
  rows.name = fresh.rows.name;
  rows.from = heads_input(fresh.rows);
  rows.to = heads_output(fresh.cache);
  rows.rows = params.cache.appended;
  rows.heads = params.heads_k;
  rows.head_dim = fresh.head_dim;
  return rows;
}

void add_rotation(const RotaryArgs& args, sm80::AppendParams& rows) {
  const RotaryParams rotary = checked_rotary_params(args);
  rows.cos = rotary.cos;
  rows.sin = rotary.sin;
  rows.table_dtype = rotary.table_dtype;
  rows.half_dim = rotary.half_dim;
  rows.num_positions = rotary.num_positions;
  rows.interleaved = rotary.interleaved;
}

struct OnCuda {
  static AttentionResults attend(const AttentionArgs& args) {
    AttentionParams params = checked_params(args);
    check_values_if_asked(args, params);
    // The bound that comes with the lengths: blocks are made for as many keys.
    if (params.cu_seqlens_k != nullptr) params.seqlen_k = std::min(params.seqlen_k, args.max_seqlen_k);
    const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());
    return attend_checked(args, params);
  }

  static AttentionResults append_and_attend(const AttentionArgs& args, AttentionParams& params,
                                            std::span<const NewRows> fresh, const Rotation* rotation) {
    check_values_if_asked(args, params);
    const torch::stable::accelerator::DeviceGuard on_device(args.q.get_device_index());
    const auto with_tables = [&](const Tensor& x) {
      return RotaryArgs{args.op, x, rotation->cos, rotation->sin, rotation->interleaved, false};
    };
    OptionalTensor rotated_q;
    if (rotation != nullptr) {
      const bool own_positions = params.mask.window_left >= 0 || params.mask.window_right >= 0;
      const OptionalTensor& seqlens = args.cache->seqlens;
      const RotaryArgs of_k = with_tables(fresh[0].rows.tensor), of_q = with_tables(args.q);
      check_positions_if_asked(of_k, params, seqlens, params.cache.appended, true);
      check_positions_if_asked(of_q, params, seqlens, params.seqlen_q, own_positions);
      rotated_q = empty_like_device(args.q, args.q.scalar_type(), args.q.sizes());
      sm80::AppendParams queries;
      queries.name = "q";
      add_rotation(of_q, queries);
      queries.from = params.q;
      queries.to = heads_output(*rotated_q);
      queries.rows = params.seqlen_q;
      queries.heads = params.heads_q;
      queries.head_dim = params.head_dim;
      queries.to_cache = false;
      queries.own_positions = own_positions;
      append(args, params, queries);
      params.q = heads_input({"q", *rotated_q});
    }
    for (const NewRows& rows : fresh) {
      sm80::AppendParams new_rows = plain_rows(params, rows);
      if (rotation != nullptr && &rows == &fresh[0]) add_rotation(with_tables(rows.rows.tensor), new_rows);
      append(args, params, new_rows);
    }
    return attend_checked(args, params);
  }
};

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CUDA, m) { flagattn::CacheOps<flagattn::OnCuda>::add_to(m); }
