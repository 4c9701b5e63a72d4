// What this build consists of and which CPU level runs; flagattn/build_info.py turns it into Python objects.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "arch/cpu_level.h"
#include "torch/build_facts.h"

namespace flagattn {
namespace {

std::string build_facts_text() { return build_facts::kText; }

std::tuple<std::string, std::string> cpu_level_and_reason() {
  const CpuLevelChoice& choice = cpu_level();
  return {name_of(choice.level), choice.reason};
}

// For tests; false if there is no such level or this host lacks it.
bool set_cpu_level_by_name(const std::string& name) {
  for (CpuLevel level : kCpuLevels) {
    if (name == name_of(level)) return set_cpu_level(level);
  }
  return false;
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CompositeExplicitAutograd, m) {
  m.impl("build_facts", TORCH_BOX(&flagattn::build_facts_text));
  m.impl("cpu_level", TORCH_BOX(&flagattn::cpu_level_and_reason));
  m.impl("set_cpu_level", TORCH_BOX(&flagattn::set_cpu_level_by_name));
}
