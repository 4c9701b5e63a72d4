// What the runner tells AddressSanitizer and ThreadSanitizer. In the plain build only the block that is recorded, if
// one is, hears of orders and accesses (happens_before.h).
//
// Under ThreadSanitizer the kernel is compiled with -fsanitize=thread and the runner without: every CUDA thread is a
// TSan thread of its own (libtsan's fiber interface), and so is each thread's copy engine. The runner states what
// orders them: barriers and waits are release/acquire pairs on tokens. A missing one is reported on any schedule, with
// the kernel's line.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_exec/happens_before.h"

#if defined(FLAGATTN_HOST_EXEC_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(FLAGATTN_HOST_EXEC_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_read_range(void* begin, unsigned long bytes);
void __tsan_write_range(void* begin, unsigned long bytes);
unsigned __tsan_atomic32_load(const volatile unsigned* address, int order);
unsigned long long __tsan_atomic64_load(const volatile unsigned long long* address, int order);
int __tsan_atomic32_compare_exchange_strong(volatile unsigned* address, unsigned* expected, unsigned value, int order,
                                            int failure_order);
int __tsan_atomic64_compare_exchange_strong(volatile unsigned long long* address, unsigned long long* expected,
                                            unsigned long long value, int order, int failure_order);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_func_entry(void* caller);
void __tsan_func_exit();
}
#endif

namespace flagattn::host_exec::tsan {

// Its address is what a happens-before edge goes through.
struct Token {
  char byte = 0;
};

#if defined(FLAGATTN_HOST_EXEC_TSAN)
inline constexpr bool kEnabled = true;
inline bool listens() { return true; }
inline void* create() { return __tsan_create_fiber(0); }
inline void destroy(void* context) { __tsan_destroy_fiber(context); }
inline void* current() { return __tsan_get_current_fiber(); }
inline void switch_to(void* context) { __tsan_switch_to_fiber(context, /*flags: no synchronisation*/ 1); }
inline void acquire(Token& token) { __tsan_acquire(&token); }
inline void release(Token& token) { __tsan_release(&token); }
inline void read(const void* begin, size_t bytes) { __tsan_read_range(const_cast<void*>(begin), bytes); }
inline void write(void* begin, size_t bytes) { __tsan_write_range(begin, bytes); }
inline void enter(void* caller) { __tsan_func_entry(caller); }
inline void leave() { __tsan_func_exit(); }
#else
inline constexpr bool kEnabled = false;
inline bool listens() { return observer != nullptr; }
inline void* create() { return observer != nullptr ? observer->create_engine() : nullptr; }
inline void destroy(void*) {}
inline void* current() { return observer != nullptr ? observer->acting() : nullptr; }
inline void switch_to(void* context) {
  if (observer != nullptr) observer->act_as(context);
}
inline void acquire(Token& token) {
  if (observer != nullptr) observer->acquire(&token);
}
inline void release(Token& token) {
  if (observer != nullptr) observer->release(&token);
}
inline void read(const void* begin, size_t bytes) {
  if (observer != nullptr) observer->access(begin, bytes, false);
}
inline void write(void* begin, size_t bytes) {
  if (observer != nullptr) observer->access(begin, bytes, true);
}
inline void enter(void*) {}
inline void leave() {}
#endif

// Atomic accesses to words that several workers share, relaxed unless they acquire or release.
#if defined(FLAGATTN_HOST_EXEC_TSAN)
inline uint32_t load(const uint32_t* word, bool acquire) {
  return __tsan_atomic32_load(word, acquire ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
}
inline uint64_t load(const uint64_t* word, bool acquire) {
  return __tsan_atomic64_load(reinterpret_cast<const unsigned long long*>(word),
                              acquire ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
}
inline bool compare_exchange(uint32_t* word, uint32_t* expected, uint32_t value, bool release) {
  return __tsan_atomic32_compare_exchange_strong(word, expected, value, release ? __ATOMIC_RELEASE : __ATOMIC_RELAXED,
                                                 __ATOMIC_RELAXED) != 0;
}
inline bool compare_exchange(uint64_t* word, uint64_t* expected, uint64_t value, bool release) {
  return __tsan_atomic64_compare_exchange_strong(reinterpret_cast<unsigned long long*>(word),
                                                 reinterpret_cast<unsigned long long*>(expected), value,
                                                 release ? __ATOMIC_RELEASE : __ATOMIC_RELAXED, __ATOMIC_RELAXED) != 0;
}
#else
template <typename Word>
Word load(const Word* word, bool acquire) {
  return __atomic_load_n(word, acquire ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
}
template <typename Word>
bool compare_exchange(Word* word, Word* expected, Word value, bool release) {
  return __atomic_compare_exchange_n(word, expected, value, false, release ? __ATOMIC_RELEASE : __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED);
}
#endif

// memcpy, but never a call that ThreadSanitizer would take for an access of the running thread.
inline void copy_unseen(void* to, const void* from, size_t bytes) {
  auto* out = static_cast<unsigned char*>(to);
  const auto* in = static_cast<const unsigned char*>(from);
  for (size_t i = 0; i < bytes; ++i) out[i] = in[i];
}

// Puts the kernel's line into reports about accesses that the runner makes in its name.
class Frame {
 public:
  explicit Frame(void* caller) { enter(caller); }
  ~Frame() { leave(); }
  Frame(const Frame&) = delete;
};

// What the running thread allocates, frees and copies inside is the runner's own business, not the kernel's. Accesses
// of other contexts (ActingAs) and orders are seen all the same.
class Unseen {
 public:
#if defined(FLAGATTN_HOST_EXEC_TSAN)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
  ~Unseen() {}
#endif
  Unseen(const Unseen&) = delete;
};

// Accesses inside belong to `context`, and orders taken there are its own.
class ActingAs {
 public:
  explicit ActingAs(void* context) : back_(current()) { switch_to(context); }
  ~ActingAs() { switch_to(back_); }
  ActingAs(const ActingAs&) = delete;

 private:
  void* back_;
};

}  // namespace flagattn::host_exec::tsan

#define FLAGATTN_HOST_EXEC_FRAME tsan::Frame frame(__builtin_return_address(0))
