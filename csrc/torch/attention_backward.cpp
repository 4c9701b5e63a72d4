// attention_backward and piecewise_backward on the CPU.
#include <torch/csrc/stable/library.h>

#include "attention/cpu/attention.h"
#include "torch/attention_backward_ops.h"
#include "torch/attention_cpu.h"
#include "torch/executor.h"

namespace flagattn {
namespace {

struct OnCpu {
  static void check_values(const AttentionArgs& args, const AttentionParams& params) {
    flagattn::check_values(args, params);
  }

  static void backward(const AttentionArgs& args, const BackwardArgs& given, const AttentionBackwardParams& params,
                       const Gradients& gradients) {
    const AttentionParams& forward = params.forward;
    check(cpu::run_attention_backward(params, torch_threads()), args.op);
    if (given.needs_dbias) {
      // A bias that is repeated over nothing has elements that no score takes.
      if (forward.batch == 0 || forward.seqlen_q == 0 || forward.seqlen_k == 0) zero_rows_behind(gradients.dbias, 0);
      check(cpu::run_attention_bias_gradient(params, torch_threads()), args.op);
    }
    if (!forward.is_packed()) return;
    const int64_t end_q = forward.cu_seqlens_q[forward.batch], end_k = forward.cu_seqlens_k[forward.batch];
    zero_rows_behind(gradients.dq, end_q);
    zero_rows_behind(gradients.dk, end_k);
    zero_rows_behind(gradients.dv, end_k);
    if (gradients.dq2.has_value()) {
      zero_rows_behind(*gradients.dq2, end_q);
      zero_rows_behind(*gradients.dk2, end_k);
    }
  }
};

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) { flagattn::AttentionBackwardOps<flagattn::OnCpu>::add_to(m); }
