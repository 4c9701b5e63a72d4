// Accesses to memory, put together again to what a warp does at once: lanes run one after the other here, but the n-th
// execution of one place in the kernel by its lanes is one instruction of the warp, with one set of addresses.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>

#include "host_exec/host_exec.h"
#include "host_exec/recording.h"

namespace flagattn::host_exec {

enum class Memory { kShared, kGlobal };

// 32-byte sectors that the lanes' accesses of `bytes` bytes touch.
int sectors(const uint64_t* addresses, uint32_t lanes, int bytes);

// How often shared memory must be read for one access: 32 banks of 4 bytes serve one word each at a time, for 128 bytes
// of lanes in turn. Lanes that read the same word share it.
int bank_passes(const uint64_t* addresses, uint32_t lanes, int bytes);
int fewest_bank_passes(uint32_t lanes, int bytes);

class Accesses {
 public:
  // The lane executes the instruction at `place`; true if it is the first of its warp to do so this time.
  bool executes(const void* place, int lane);

  // The same, and accesses memory there; or nothing, if the address is kNowhere.
  static constexpr uint64_t kNowhere = ~uint64_t{0};
  bool access(const void* place, Memory memory, bool writes, int lane, uint64_t address, int bytes, Counters& counters);

  // The block has ended: what is still open goes into the counters.
  void settle(Counters& counters);

  // Of the warp, where it is recorded: what its accesses cost is noted there. Such a one is recorded right after
  // access() was true.
  void note_in(std::vector<Event>* events) { events_ = events; }

  // The event of the last access, where the warp is recorded.
  size_t event() const { return event_; }

 private:
  struct Access {
    uint32_t came = 0;
    uint32_t lanes = 0;  // of these, those that access something
    uint64_t addresses[32];
    size_t event = 0;

    void add(int lane, uint64_t address) {
      came |= 1u << lane;
      if (address != kNowhere) lanes |= 1u << lane;
      addresses[lane] = address;
    }
  };
  struct Place {
    uint32_t executed[32] = {};
    uint32_t most = 0;
    uint32_t first_open = 0;
    std::deque<Access> open;  // numbers first_open to most
    Memory memory = Memory::kShared;
    bool writes = false;
    int bytes = 0;

    bool execute(int lane) { return executed[lane]++ == most && ++most != 0; }
    void settle_first(Counters& counters, std::vector<Event>* events);
  };
  std::unordered_map<uintptr_t, Place> places_;
  std::vector<Event>* events_ = nullptr;
  size_t event_ = 0;
};

}  // namespace flagattn::host_exec
