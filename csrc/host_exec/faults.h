// Planting faults by name (arch/planted_fault.h), in every launch or in one.
#pragma once

#include <string>

namespace flagattn::host_exec {

inline constexpr int kEveryLaunch = -1;

// Of the launches that follow, counted from 0. The empty name stands for none; throws std::invalid_argument at others
// that do not exist.
void plant(const std::string& fault, int launch = kEveryLaunch);

// While it lives the fault is planted if it belongs to this launch.
class LaunchWithFault {
 public:
  LaunchWithFault();
  ~LaunchWithFault();
  LaunchWithFault(const LaunchWithFault&) = delete;
};

}  // namespace flagattn::host_exec
