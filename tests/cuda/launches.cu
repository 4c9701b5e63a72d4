// Launches that CUDA refuses, and what they leave behind: on a GPU, or linked with fake_runtime.cpp where there is
// none. Prints "NAME: right" or "NAME: wrong"; exits with 1 if one is wrong.
#include <cstdio>

#include "arch/ptx/launch.cuh"

namespace flagattn {
namespace {

struct Arguments {
  int* out;
};
struct TooLarge {
  char bytes[300 << 10];
};
struct Small {
  int word;
};

FLAGATTN_KERNEL(32, 1) kernel(FLAGATTN_KERNEL_ARGUMENT Arguments arguments) {
  if (ptx::thread_index() == 0 && arguments.out != nullptr) *arguments.out = ptx::block_index();
}

bool right = true;
void expect(const char* name, bool holds) {
  std::printf("%s: %s\n", name, holds ? "right" : "wrong");
  right = right && holds;
}

int run() {
  const Status refused = ptx::launch<TooLarge>(kernel, 1, 32, {}, Arguments{nullptr});
  expect("too much shared memory is refused",
         refused.message.find(
             "a block of this kernel takes 300 KiB of shared memory, but a GPU of compute capability ") == 0);
  expect("the refusal is not left for the next call", cudaGetLastError() == cudaSuccess);
  const Status threads = ptx::launch<Small>(kernel, 1, 2048, {}, Arguments{nullptr});
  expect("too many threads are refused", threads.message.find("CUDA refused the launch: ") == 0);
  expect("nor is this one", cudaGetLastError() == cudaSuccess);
  expect("no block, no launch", ptx::launch<Small>(kernel, 0, 32, {}, Arguments{nullptr}).ok());
  // An error of somebody else's, not yet taken: our launch is not to blame.
  static_cast<void>(cudaFuncSetAttribute(reinterpret_cast<const void*>(&kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 30));
  expect("a launch does not report an older error", ptx::launch<Small>(kernel, 3, 32, {}, Arguments{nullptr}).ok());
  expect("and it runs", cudaDeviceSynchronize() == cudaSuccess);
  return right ? 0 : 1;
}

}  // namespace
}  // namespace flagattn

int main() { return flagattn::run(); }
