// Finds races in the shared memory of a recorded block without ThreadSanitizer, and says between which events: vector
// clocks over what the runner says orders threads and engines (sanitizer.h), and a history of every word. Accesses
// through plain pointers are not seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace flagattn::host_exec {

class HappensBefore {
 public:
  // Who touches memory: the event of a warp, on behalf of a lane, by the thread itself or an engine of its.
  struct Access {
    int warp = 0;
    int event = 0;  // index among the warp's, or among its matrix loads
    bool is_matrix_load = false;
    int lane = 0;
    bool by_engine = false;
    bool writes = false;
  };
  struct Race {
    uint32_t offset;  // in shared memory
    Access first, second;
  };
  static constexpr size_t kMostRaces = 2000;  // pairs of events

  HappensBefore(int threads, const std::byte* shared, size_t bytes);

  // Engines have clocks of their own. Null stands for the running thread.
  void* create_engine();
  void* acting() const { return acting_; }
  void act_as(void* engine) { acting_ = engine; }

  void acquire(const void* token);
  void release(const void* token);

  // The accesses that follow belong to this event.
  void at(int warp, size_t event) { warp_ = warp, event_ = static_cast<int>(event), is_matrix_load_ = false; }
  void at_matrix_load(int warp, int number) { warp_ = warp, event_ = number, is_matrix_load_ = true; }
  void access(const void* begin, size_t bytes, bool writes);

  const std::vector<Race>& races() const { return races_; }

 private:
  using Clock = std::vector<uint32_t>;
  struct Seen {
    int context = -1;
    uint32_t time = 0;
    Access access;
  };
  struct Word {
    Seen written;
    std::vector<Seen> read;  // since then, the last of each context
  };

  int context() const;
  bool is_before(const Seen& seen, const Clock& now) const;
  void report(const Seen& first, const Access& second, size_t word);

  const std::byte* shared_;
  std::vector<Word> words_;
  std::vector<Clock> clocks_;  // of the threads, then of the engines
  std::unordered_map<const void*, Clock> tokens_;
  void* acting_ = nullptr;
  int warp_ = 0, event_ = 0;
  bool is_matrix_load_ = false;
  std::vector<Race> races_;
  std::unordered_set<uint64_t> reported_;  // pairs of events
};

// Of the block that runs on this worker, if it is recorded.
extern thread_local HappensBefore* observer;

}  // namespace flagattn::host_exec
