// What the CPU does for the cache ops: check everything, rotate and append the new rows, attend.
#pragma once

#include <vector>

#include "attention/cache_checks.h"
#include "attention/cpu/attention.h"
#include "attention/cpu/cache.h"
#include "rotary/cpu/rotary.h"
#include "torch/attention_cpu.h"
#include "torch/attention_kvcache_ops.h"
#include "torch/executor.h"

namespace flagattn {

inline AttentionResults attend_checked(const AttentionArgs& args, AttentionParams& params) {
  AttentionResults results = empty_results(params, args.q);
  check(cpu::run_attention_forward(params, torch_threads()), args.op);
  define_rows_behind(params, std::get<0>(results));
  return results;
}

inline Tensor rotated(const RotaryArgs& args, const std::vector<int64_t>& positions) {
  RotaryParams params = checked_rotary_params(args);
  Tensor y = empty_like_device(args.x, args.x.scalar_type(), args.x.sizes());
  params.y = rotary_operand({"y", y}, output_data(y));
  params.positions64 = positions.data();
  params.positions_batch_stride = params.seqlen;
  check(cpu::run_rotary(params, torch_threads()), args.op);
  return y;
}

struct CachesOnCpu {
  static AttentionResults attend(const AttentionArgs& args) {
    AttentionParams params = checked_params(args);
    check_values(args, params);
    check(check_cache(params), args.op);
    return attend_checked(args, params);
  }

  static AttentionResults append_and_attend(const AttentionArgs& args, AttentionParams& params,
                                            std::span<const NewRows> fresh, const Rotation* rotation) {
    check(check_cache(params), args.op);
    // Positions outside the tables are found here, before anything is written.
    OptionalTensor rotated_q, rotated_k;
    if (rotation != nullptr) {
      const bool own_positions = params.mask.window_left >= 0 || params.mask.window_right >= 0;
      const auto with_tables = [&](const Tensor& x) {
        return RotaryArgs{args.op, x, rotation->cos, rotation->sin, rotation->interleaved, false};
      };
      rotated_k = rotated(with_tables(fresh[0].rows.tensor), positions_behind(params, params.cache.appended, true));
      rotated_q = rotated(with_tables(args.q), positions_behind(params, params.seqlen_q, own_positions));
      params.q = heads_input({"q", *rotated_q});
    }
    for (const NewRows& rows : fresh) {
      const bool is_rotated = rotated_k.has_value() && &rows == &fresh[0];
      const HeadsView from = is_rotated ? heads_input({"k", *rotated_k}) : heads_input(rows.rows);
      cpu::append_to_cache(params, from, heads_output(rows.cache), rows.head_dim, torch_threads());
    }
    return attend_checked(args, params);
  }
};

}  // namespace flagattn
