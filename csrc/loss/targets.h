// The values of targets, where the host can read them.
#pragma once

#include <cstdint>
#include <string>

#include "arch/status.h"
#include "loss/params.h"

namespace flagattn {

// Refuses targets that are neither a class nor ignore_index.
inline Status check_targets(const LossRows& in) {
  for (int64_t row = 0; row < in.rows; ++row) {
    const int64_t target = in.targets[row];
    if (target == in.options.ignore_index || (0 <= target && target < in.classes)) continue;
    const std::string classes =
        in.classes > 0 ? "from 0 to " + std::to_string(in.classes - 1) + ", or " : "where there are no classes ";
    return Status::error("targets holds " + std::to_string(target) + " at position " + std::to_string(row) +
                         "; it must be " + classes + "ignore_index = " + std::to_string(in.options.ignore_index) + ".");
  }
  return Status::success();
}

}  // namespace flagattn
