#include "arch/scratch.h"

#include <new>

namespace flagattn::cpu {
namespace {

struct Block {
  void* data = nullptr;
  size_t bytes = 0;

  void release() {
    ::operator delete(data, std::align_val_t{kScratchAlignment});
    data = nullptr;
    bytes = 0;
  }
  ~Block() { release(); }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Block block;
  if (block.bytes < bytes) {
    block.release();
    block.data = ::operator new(bytes, std::align_val_t{kScratchAlignment});
    block.bytes = bytes;
  }
  return block.data;
}

}  // namespace flagattn::cpu
