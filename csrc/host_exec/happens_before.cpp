#include "host_exec/happens_before.h"

#include <algorithm>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

constexpr size_t kWordBytes = 4;

template <typename Clock>
void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

}  // namespace

thread_local HappensBefore* observer;

HappensBefore::HappensBefore(int threads, const std::byte* shared, size_t bytes)
    : shared_(shared), words_(bytes / kWordBytes + 1) {
  for (int i = 0; i < threads; ++i) {
    clocks_.emplace_back(threads);
    clocks_.back()[i] = 1;
  }
}

void* HappensBefore::create_engine() {
  clocks_.emplace_back(clocks_.size() + 1);
  clocks_.back().back() = 1;
  return reinterpret_cast<void*>(clocks_.size() - 1);  // never 0: a block has threads
}

int HappensBefore::context() const {
  return acting_ != nullptr ? static_cast<int>(reinterpret_cast<uintptr_t>(acting_)) : self->index;
}

void HappensBefore::acquire(const void* token) {
  if (self == nullptr) return;
  const auto found = tokens_.find(token);
  if (found != tokens_.end()) join(clocks_[context()], found->second);
}

void HappensBefore::release(const void* token) {
  if (self == nullptr) return;
  Clock& mine = clocks_[context()];
  join(tokens_[token], mine);
  ++mine[context()];
}

bool HappensBefore::is_before(const Seen& seen, const Clock& now) const {
  if (seen.context < 0) return true;
  return static_cast<size_t>(seen.context) < now.size() && seen.time <= now[seen.context];
}

void HappensBefore::report(const Seen& first, const Access& second, size_t word) {
  const auto number = [](const Access& access) {  // below 2^32
    return uint64_t(access.event) << 6 | access.is_matrix_load << 5 | access.warp;
  };
  const bool is_new = reported_.insert(number(first.access) << 32 | number(second)).second;
  if (!is_new || races_.size() == kMostRaces) return;
  races_.push_back({static_cast<uint32_t>(word * kWordBytes), first.access, second});
}

void HappensBefore::access(const void* begin, size_t bytes, bool writes) {
  const auto offset = static_cast<const std::byte*>(begin) - shared_;
  if (self == nullptr || offset < 0 || static_cast<size_t>(offset) + bytes > words_.size() * kWordBytes) return;
  const int me = context();
  const Clock& now = clocks_[me];
  const Seen seen{me, now[me], {warp_, event_, is_matrix_load_, self->lane, acting_ != nullptr, writes}};
  for (size_t word = offset / kWordBytes; word <= (offset + bytes - 1) / kWordBytes; ++word) {
    Word& history = words_[word];
    if (!is_before(history.written, now)) report(history.written, seen.access, word);
    if (writes) {
      for (const Seen& reader : history.read) {
        if (!is_before(reader, now)) report(reader, seen.access, word);
      }
      history.written = seen;
      history.read.clear();
      continue;
    }
    const auto mine = std::find_if(history.read.begin(), history.read.end(),
                                   [&](const Seen& reader) { return reader.context == me; });
    if (mine != history.read.end()) {
      *mine = seen;
    } else {
      history.read.push_back(seen);
    }
  }
}

}  // namespace flagattn::host_exec
