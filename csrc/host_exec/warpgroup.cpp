// wgmma: every warp multiplies its 16 of the 64 rows, when its group is waited for or before.
#include "host_exec/warpgroup.h"

#include <cstring>

#include "arch/matrix_descriptor.h"
#include "host_exec/machine.h"
#include "host_exec/matrix.h"
#include "host_exec/numbers.h"

namespace flagattn::host_exec {
namespace {

constexpr int kRows = 16, kK = 16, kMostColumns = 256;

// The 16 bytes around element (row, k), of the elements after it along the contiguous dimension.
const std::byte* chunk_at(const MatrixDescriptor& d, int row, int k, bool k_major) {
  return shared_pointer(address_in_operand(d, row, k, k_major), 16, 16);
}

// Calls visit(chunk, row, k) for each 16 bytes of rows [first, first + rows): 8 elements along K, or along the rows.
template <typename Visit>
void each_chunk(const MatrixDescriptor& d, int first, int rows, bool k_major, const Visit& visit) {
  const int row_step = k_major ? 1 : 8, k_step = k_major ? 8 : 1;
  for (int row = first; row < first + rows; row += row_step) {
    for (int k = 0; k < kK; k += k_step) visit(chunk_at(d, row, k, k_major), row, k);
  }
}

template <int kWidth>
void widen_operand(float (*matrix)[kWidth], const MatrixDescriptor& d, int first, int rows, bool k_major,
                   bool is_bfloat16) {
  const Numbers numbers = is_bfloat16 ? Numbers::kBFloat16 : Numbers::kFloat16;
  each_chunk(d, first, rows, k_major, [&](const std::byte* chunk, int row, int k) {
    for (int e = 0; e < 8; ++e) {
      matrix[k + (k_major ? e : 0)][row - first + (k_major ? 0 : e)] = widen(chunk, e, numbers);
    }
  });
}

// Sums in ascending k, as mma.sync does here.
void multiply(const Warp& warp, const WarpgroupProduct& p) {
  static thread_local float a[kK][kRows], b[kK][kMostColumns], d[kRows][kMostColumns];
  if (p.a_in_registers) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const Place place = place_in_a(lane, i, 2);
        a[place.column][place.row] = widen(p.a[lane], i, p.is_bfloat16 ? Numbers::kBFloat16 : Numbers::kFloat16);
      }
    }
  } else {
    widen_operand(a, descriptor_of(p.descriptor_a), warp.index % 4 * kRows, kRows, !p.transposes_a, p.is_bfloat16);
  }
  widen_operand(b, descriptor_of(p.descriptor_b), 0, p.n, !p.transposes_b, p.is_bfloat16);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < p.n / 2; ++i) {
      const Place place = place_in_warpgroup_d(lane, i);
      d[place.row][place.column] = p.accumulates ? p.d[lane][i] : 0.0f;
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kK; ++k) {
      for (int column = 0; column < p.n; ++column) d[row][column] += a[k][row] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < p.n / 2; ++i) {
      const Place place = place_in_warpgroup_d(lane, i);
      p.d[lane][i] = d[place.row][place.column];
    }
  }
}

// What the engine touches, as ThreadSanitizer and the check of fences see it.
void announce(Warp& warp, const WarpgroupProduct& p) {
  WarpgroupProducts& products = warp.products;
  if constexpr (tsan::kEnabled) {
    if (products.engine == nullptr) products.engine = tsan::create();
  }
  const auto read = [](const std::byte* chunk, int, int) {
    check_shown_to_engine(kSharedBase + static_cast<uint32_t>(chunk - machine->shared), "a warpgroup's product reads");
    tsan::read(chunk, 16);
  };
  const tsan::ActingAs engine(products.engine);
  const tsan::Frame issued_at(const_cast<void*>(p.place));
  tsan::acquire(products.tokens->issue);
  const int first = warp.index % 4 * kRows;
  if (!p.a_in_registers) each_chunk(descriptor_of(p.descriptor_a), first, kRows, !p.transposes_a, read);
  each_chunk(descriptor_of(p.descriptor_b), 0, p.n, !p.transposes_b, read);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    tsan::write(p.d[lane], p.n * 2);
    if (p.a_in_registers) tsan::read(p.a[lane], 16);
  }
}

struct Call {
  WarpgroupProduct product;
  float* d;
  const uint32_t* a;
};

bool agree(const WarpgroupProduct& x, const WarpgroupProduct& y) {
  return x.descriptor_a == y.descriptor_a && x.descriptor_b == y.descriptor_b && x.n == y.n &&
         x.accumulates == y.accumulates && x.a_in_registers == y.a_in_registers;
}

// The four warps of the group must issue the same products.
void check_warpgroup(const Warp& warp, const WarpgroupProduct& p) {
  auto& issued = machine->warpgroup_products[warp.index / 4];
  const uint64_t number = warp.products.issued;
  if (number == issued.size()) issued.push_back(p);
  if (!agree(issued[number], p)) fail("wgmma: the warps of the warpgroup give different operands");
}

void execute(const Meeting& m) {
  const tsan::Unseen unseen;
  Warp& warp = *self->warp;
  WarpgroupProduct p = m.of<Call>(0).product;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Call& call = m.of<Call>(lane);
    if (!agree(call.product, p)) fail("wgmma: lanes 0 and %d give different operands", lane);
    p.d[lane] = call.d;
    p.a[lane] = call.a;
  }
  check_warpgroup(warp, p);
  ++warp.products.issued;
  announce(warp, p);
  count(Instruction::kMatrixProduct);
  machine->counters.matrix_flops += 2ll * kRows * kK * p.n;
  warp.products.open.push_back(p);
}

void finish(Warp& warp, std::vector<WarpgroupProduct>& group) {
  for (const WarpgroupProduct& p : group) multiply(warp, p);
  group.clear();
}

// Products finish in order: all that are closed, and then those of the open group.
void finish_early(Warp& warp) {
  const tsan::Unseen unseen;
  const CopyTiming timing = machine->options.copies;
  if (timing == CopyTiming::kLazy || (timing == CopyTiming::kRandom && !machine->random.one_in(3))) return;
  for (auto& group : warp.products.closed) finish(warp, group);
  finish(warp, warp.products.open);
}

}  // namespace

void wgmma(float* d, int n, const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b, bool accumulates,
           bool is_bfloat16, bool transposes_a, bool transposes_b) {
  FLAGATTN_HOST_EXEC_FRAME;
  if (!self->registers_handed_over) fail("wgmma without wgmma_fence since the registers were last this thread's own");
  if (machine->warps.size() % 4 != 0) fail("wgmma in a block that is not made of warpgroups");
  Call call{{}, d, a};
  call.product = {{},
                  {},
                  descriptor_a,
                  descriptor_b,
                  n,
                  a != nullptr,
                  accumulates,
                  is_bfloat16,
                  transposes_a,
                  transposes_b,
                  __builtin_return_address(0)};
  tsan::release(self->warp->products.tokens->issue);
  collective("wgmma.mma_async", kAllLanes, &call, false, [](const Meeting& m) {
    execute(m);
    finish_early(*self->warp);
  });
}

void wgmma_fence() {
  collective("wgmma.fence", kAllLanes, nullptr, false, [](const Meeting&) {});
  self->registers_handed_over = true;
}

void wgmma_commit() {
  collective("wgmma.commit_group", kAllLanes, nullptr, false, [](const Meeting&) {
    const tsan::Unseen unseen;
    WarpgroupProducts& products = self->warp->products;
    if (products.engine != nullptr) {
      const tsan::ActingAs engine(products.engine);
      tsan::release(products.tokens->group[products.committed % kWarpgroupTokens]);
    }
    products.closed.push_back(std::move(products.open));
    products.open.clear();
    ++products.committed;
  });
}

void wgmma_wait(int groups_left) {
  collective("wgmma.wait_group", kAllLanes, &groups_left, false, [](const Meeting& m) {
    const tsan::Unseen unseen;
    Warp& warp = *self->warp;
    while (static_cast<int>(warp.products.closed.size()) > m.of<int>(0)) {
      finish(warp, warp.products.closed.front());
      warp.products.closed.pop_front();
    }
  });
  WarpgroupProducts& products = self->warp->products;
  uint64_t& waited = products.waited[self->lane];
  for (; waited + groups_left < products.committed; ++waited) {
    tsan::acquire(products.tokens->group[waited % kWarpgroupTokens]);
  }
  self->registers_handed_over = false;
}

void check_products_at_exit(const WarpgroupProducts& products) {
  if (products.issued > 0 && (!products.open.empty() || !products.closed.empty())) {
    fail("the thread returns without having waited for its warp's wgmma");
  }
}

}  // namespace flagattn::host_exec
