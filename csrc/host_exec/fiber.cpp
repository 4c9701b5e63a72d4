#include "host_exec/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "host_exec/sanitizer.h"

#if defined(FLAGATTN_HOST_EXEC_ASAN)
#include <sanitizer/asan_interface.h>
#endif

#if !defined(__x86_64__)
#error "the host runner's context switch is written for x86-64"
#endif

// Saves the registers that a call must preserve, exchanges the stacks and restores the others'.
extern "C" void flagattn_exchange_stacks(void** save_stack_pointer, void* stack_pointer);
asm(R"(.text
.globl flagattn_exchange_stacks
.type flagattn_exchange_stacks, @function
flagattn_exchange_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size flagattn_exchange_stacks, . - flagattn_exchange_stacks
)");

namespace flagattn::host_exec {

Fiber running_context() {
  Fiber fiber;
  fiber.tsan_context = tsan::current();
  pthread_attr_t attributes;
  void* stack = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &stack, &fiber.stack_bytes);
    pthread_attr_destroy(&attributes);
  }
  fiber.stack = static_cast<std::byte*>(stack);
  return fiber;
}

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(FLAGATTN_HOST_EXEC_ASAN)
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // frames that never returned left it poisoned
#endif
  // The switch pops six registers and returns into entry(); a call leaves the stack at 8 modulo 16.
  auto* top = reinterpret_cast<uintptr_t*>(fiber.stack + fiber.stack_bytes - 64);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
  fiber.asan_fake_stack = nullptr;
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_ends) {
  tsan::switch_to(to.tsan_context);
#if defined(FLAGATTN_HOST_EXEC_ASAN)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.asan_fake_stack, to.stack, to.stack_bytes);
#endif
  flagattn_exchange_stacks(&from.stack_pointer, to.stack_pointer);
#if defined(FLAGATTN_HOST_EXEC_ASAN)
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

void begin_fiber() {
#if defined(FLAGATTN_HOST_EXEC_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

Stacks::Stacks(int count) : bytes_(count * (kBytes + kGuardBytes)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(memory);
  for (int i = 0; i < count; ++i) mprotect(of(i) - kGuardBytes, kGuardBytes, PROT_NONE);
}

void Stacks::renew() {
  void* memory =
      mmap(base_, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
}

Stacks::~Stacks() { munmap(base_, bytes_); }

}  // namespace flagattn::host_exec
