// Runs the sm_80 kernels of a fused op on one problem and compares them with a float64 computation. Built plain, with
// AddressSanitizer and with ThreadSanitizer, and with planted faults; driven by test_fused_sanitizers.py.
//
//   run_fused op=rms_norm rows=9 cols=64 [stride=72] [dtype=bf16] [weight=fp32] [seed=0] [workers=1]
//   [fault=stray_read [faulty_launch=1]]
//
// Prints the largest errors; exits with 1 if one exceeds its bound, with 2 if the runner stopped the kernel, and with a
// sanitizer's own status if that reported.
#include "host_exec/faults.h"
#include "host_exec/host_exec.h"
#include "tests/host_exec/fused/activation.h"
#include "tests/host_exec/fused/loss.h"
#include "tests/host_exec/fused/norm.h"
#include "tests/host_exec/fused/rotary.h"

namespace flagattn::fused {
namespace {

int run(const Options& options) {
  host_exec::options().seed = static_cast<uint32_t>(options.whole("seed"));
  host_exec::options().workers = static_cast<int>(options.whole("workers", 1));
  host_exec::plant(options.text("fault"), static_cast<int>(options.whole("faulty_launch", host_exec::kEveryLaunch)));
  const std::map<std::string, int (*)(const Options&)> ops = {{"rms_norm", run_norm},
                                                              {"swiglu", run_swiglu},
                                                              {"cross_entropy", run_cross_entropy},
                                                              {"apply_rotary", run_rotary}};
  return ops.at(options.text("op"))(options);
}

}  // namespace
}  // namespace flagattn::fused

int main(int argc, char** argv) { return flagattn::fused::run({argc, argv}); }
