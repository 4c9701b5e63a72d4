// attention_forward and piecewise_forward on the CPU.
#include <torch/csrc/stable/library.h>

#include "attention/cpu/attention.h"
#include "torch/attention_cpu.h"
#include "torch/attention_ops.h"
#include "torch/executor.h"

namespace flagattn {
namespace {

struct OnCpu {
  static void check_values(const AttentionArgs& args, const AttentionParams& params) {
    flagattn::check_values(args, params);
  }

  static void forward(const AttentionArgs& args, const AttentionParams& params, const Tensor& out) {
    check(cpu::run_attention_forward(params, torch_threads()), args.op);
    define_rows_behind(params, out);
  }
};

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) { flagattn::AttentionOps<flagattn::OnCpu>::add_to(m); }
