#include "host_exec/worker.h"

#include <algorithm>

namespace flagattn::host_exec {

Worker::Worker(int index, int workers, const LaunchShape& shape, void (*body)(const void*), const void* closure,
               Residents& residents)
    : index_(index),
      step_(workers),
      next_(index),
      shape_(shape),
      body_(body),
      closure_(closure),
      residents_(residents),
      random_(options().seed + 77ull * index) {
  if (options().resident > 0) most_ = std::max(options().resident / workers, 1);
}

Status Worker::run() {
  Status status;
  while (status.ok() && !residents_.stopped()) {
    const uint64_t seen = residents_.changes();
    Machine* m = choose();
    if (m != nullptr) {
      status = run(*m);
    } else if (running_.empty()) {
      break;
    } else if (!residents_.wait_for_change(index_, seen)) {
      status = Status::error("deadlock between blocks: " + waiting_blocks());
    }
  }
  if (!status.ok()) residents_.stop();
  for (Machine* m : running_) {
    if (m->recording == nullptr) continue;
    m->failure = status.ok() ? "another block has stopped the launch" : status.message;
    end_recording(*m);
  }
  residents_.worker_ends(index_);
  for (auto& m : machines_) tsan::acquire(m->end_token);
  return status;
}

Counters Worker::counters() const {
  Counters sum;
  for (const auto& m : machines_) sum.add(m->counters);
  return sum;
}

Machine* Worker::choose() {
  std::vector<Machine*> able;
  for (Machine* m : running_) {
    if (can_continue(*m)) able.push_back(m);
  }
  const bool may_start = next_ < shape_.blocks && static_cast<int>(running_.size()) < most_;
  if (options().seed != 0 && may_start && random_.one_in(2)) able.clear();
  if (!able.empty()) return able[options().seed != 0 ? random_.next() % able.size() : 0];
  return may_start ? start() : nullptr;
}

Machine* Worker::start() {
  Machine* m;
  if (free_.size() < (tsan::kEnabled ? 2 : 1)) {  // neighbours never share threads
    m = machines_.emplace_back(std::make_unique<Machine>(shape_, options())).get();
    m->body = body_;
    m->closure = closure_;
    m->residents = &residents_;
  } else {
    m = free_.front();
    free_.pop_front();
  }
  running_.push_back(m);
  start_block(*m, next_);
  started_ = m;
  next_ += step_;
  return m;
}

Status Worker::run(Machine& m) {
  machine = &m;
  observer = !tsan::kEnabled && m.recording != nullptr ? m.recording->order.get() : nullptr;
  if (started_ == &m) {
    started_ = nullptr;
    run_threads();
  } else {
    continue_threads();
  }
  machine = nullptr;
  observer = nullptr;
  if (m.failed) {
    end_recording(m);
    return Status::error(m.failure);
  }
  if (m.live > 0) return Status::success();
  if (!m.loads.empty()) {
    return Status::error("block " + std::to_string(m.block) +
                         ": its threads have returned while bulk loads are under way");
  }
  for (Warp& warp : m.warps) warp.accesses.settle(m.counters);
  end_recording(m);
  running_.erase(std::find(running_.begin(), running_.end(), &m));
  free_.push_back(&m);
  return Status::success();
}

std::string Worker::waiting_blocks() const {
  std::string text;
  for (const Machine* m : running_) {
    text += (text.empty() ? "block " : "; block ") + std::to_string(m->block) + ": " + waiting_places(*m);
  }
  return text;
}

}  // namespace flagattn::host_exec
