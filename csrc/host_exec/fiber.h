// Contexts of execution with stacks of their own that switch by a function call.
#pragma once

#include <cstddef>

namespace flagattn::host_exec {

struct Fiber {
  void* stack_pointer = nullptr;
  std::byte* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
  void* asan_fake_stack = nullptr;
  void* tsan_context = nullptr;
};

// The context that is running now, so that fibers can switch back to it.
Fiber running_context();

// The next switch to `fiber` calls entry(), which must never return.
void prepare(Fiber& fiber, void (*entry)());

// Leaves `from` where it is and continues `to`; `from_ends` if no one will switch back.
void switch_fiber(Fiber& from, Fiber& to, bool from_ends = false);

// What a fiber must call first.
void begin_fiber();

// Stacks for `count` fibers, each with an inaccessible page below it.
class Stacks {
 public:
  explicit Stacks(int count);
  ~Stacks();
  Stacks(const Stacks&) = delete;

  static constexpr size_t kBytes = size_t{256} << 10;
  // New memory at the same addresses. ThreadSanitizer forgets what was there; the pages between are accessible then.
  void renew();

  std::byte* of(int index) const { return base_ + index * (kBytes + kGuardBytes) + kGuardBytes; }

 private:
  static constexpr size_t kGuardBytes = 4096;
  std::byte* base_;
  size_t bytes_;
};

}  // namespace flagattn::host_exec
