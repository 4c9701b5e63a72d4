// Runs the checks of this folder on the CPU: `instructions CHECK [seeds] [fault]` runs one under so many thread
// schedules, with asynchronous operations that land at once, late and at random; `instructions list` names them. Exits
// with 0 if all is right, 1 if not, and with a sanitizer's own status if that reported.
#include <cstdlib>
#include <cstring>

#include "host_exec/host_exec.h"
#include "tests/host_exec/instructions/checks.cuh"

namespace flagattn::instructions {
namespace {

bool right_under_every_schedule(const Check& check, uint32_t seeds) {
  using host_exec::CopyTiming;
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    for (const CopyTiming timing : {CopyTiming::kLazy, CopyTiming::kEager, CopyTiming::kRandom}) {
      host_exec::options().seed = seed;
      host_exec::options().copies = timing;
      host_exec::options().workers = 1 + static_cast<int>(seed % 3);
      if (check.body()) continue;
      std::printf("with seed %u and timing %d\n", seed, static_cast<int>(timing));
      return false;
    }
  }
  return true;
}

int main_of(const std::string& name, uint32_t seeds, int fault) {
  planted_fault = static_cast<Fault>(fault);
  for (const Check& check : all_checks(90)) {
    if (name == "list") std::printf("%s\n", check.name);
    if (name == check.name) return right_under_every_schedule(check, seeds) ? 0 : 1;
  }
  return name == "list" ? 0 : 1;
}

}  // namespace
}  // namespace flagattn::instructions

int main(int argc, char** argv) {
  return flagattn::instructions::main_of(argc > 1 ? argv[1] : "list",
                                         argc > 2 ? static_cast<uint32_t>(std::atoi(argv[2])) : 1,
                                         argc > 3 ? std::atoi(argv[3]) : 0);
}
