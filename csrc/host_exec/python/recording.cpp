// Recordings of `_host_exec`: dicts and tuples, which flagattn/testing/microscope reads.
#include "host_exec/recording.h"

#include "host_exec/faults.h"
#include "host_exec/python/recording.h"

namespace py = pybind11;

namespace flagattn {
namespace {

using host_exec::Event;
using host_exec::HappensBefore;
using host_exec::Recording;

const char* name_of(int kind) {
  return kind < host_exec::kInstructions ? host_exec::kInstructionNames[kind]
                                         : host_exec::kHappeningNames[kind - host_exec::kInstructions];
}

py::tuple access_tuple(const Recording& recording, const HappensBefore::Access& access) {
  return py::make_tuple(access.warp, recording.event_of(access), access.lane, access.by_engine, access.writes);
}

py::dict as_dict(const Recording& recording) {
  py::list warps;
  for (const auto& events : recording.warps) {
    py::list list;
    for (const Event& e : events) {
      list.append(
          py::make_tuple(e.order, name_of(e.kind), e.waits, e.which, e.phase, e.bytes, e.bank_conflicts, e.sectors));
    }
    warps.append(std::move(list));
  }
  py::list phase_ends, races;
  for (const auto& end : recording.phase_ends) phase_ends.append(py::make_tuple(end.order, end.which, end.phase));
  for (const auto& race : recording.order->races()) {
    races.append(
        py::make_tuple(race.offset, access_tuple(recording, race.first), access_tuple(recording, race.second)));
  }
  py::dict dict;
  dict["kernel"] = recording.kernel;
  dict["blocks"] = recording.blocks;
  dict["block"] = recording.block;
  dict["threads"] = recording.threads;
  dict["shared_bytes"] = recording.shared_bytes;
  dict["warps"] = std::move(warps);
  dict["phase_ends"] = std::move(phase_ends);
  dict["races"] = std::move(races);
  dict["failure"] = recording.failure;
  dict["is_cut"] = recording.is_cut;
  return dict;
}

}  // namespace

void bind_recording(py::module_& m) {
  // Of the launches that follow; below 0: no block.
  m.def("record", [](int block) {
    host_exec::options().recorded_block = block;
    host_exec::recordings().clear();
  });
  m.def("recordings", [] {
    py::list list;
    for (const Recording& recording : host_exec::recordings()) list.append(as_dict(recording));
    return list;
  });
  m.def("plant", host_exec::plant, py::arg("fault"), py::arg("launch") = host_exec::kEveryLaunch);
}

}  // namespace flagattn
