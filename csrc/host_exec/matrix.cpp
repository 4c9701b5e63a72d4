// ldmatrix, stmatrix and mma.sync.
#include "host_exec/matrix.h"

#include <cstring>

#include "host_exec/machine.h"
#include "host_exec/numbers.h"

namespace flagattn::host_exec {
namespace {

struct MatrixMove {
  uint32_t* registers;
  int count;
  bool transpose;
  uint32_t address;
  uint16_t row[8];
};

// The eight rows of one matrix are moved at once.
void count_bank_conflicts(const Meeting& m) {
  for (int matrix = 0; matrix < m.of<MatrixMove>(0).count; ++matrix) {
    uint64_t addresses[kWarpSize];
    for (int r = 0; r < 8; ++r) addresses[r] = m.of<MatrixMove>(8 * matrix + r).address;
    const int conflicts = bank_passes(addresses, 0xff, 16) - fewest_bank_passes(0xff, 16);
    machine->counters.bank_conflicts += conflicts;
    if (machine->recording != nullptr) {
      Event& event = machine->recording->warps[self->warp->index].back();
      event.bank_conflicts += conflicts;
      event.bytes += 8 * 16;
    }
  }
}

// Moves elements between the lanes' rows and registers.
template <bool kToRegisters>
void distribute(const Meeting& m) {
  const MatrixMove& first = m.of<MatrixMove>(0);
  for (int matrix = 0; matrix < first.count; ++matrix) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      uint32_t& whole = m.of<MatrixMove>(lane).registers[matrix];
      uint16_t pair[2];
      std::memcpy(pair, &whole, sizeof pair);
      for (int e = 0; e < 2; ++e) {
        const Place place = place_in_8x8(lane, e);
        const int row = first.transpose ? place.column : place.row, column = first.transpose ? place.row : place.column;
        uint16_t& stored = m.of<MatrixMove>(8 * matrix + row).row[column];
        (kToRegisters ? pair[e] : stored) = kToRegisters ? stored : pair[e];
      }
      if (kToRegisters) std::memcpy(&whole, pair, sizeof pair);
    }
  }
  count_bank_conflicts(m);
}

constexpr const char* kLoadNames[] = {"ldmatrix.x1", "ldmatrix.x2", "ldmatrix.x4"};
constexpr const char* kStoreNames[] = {"stmatrix.x1", "stmatrix.x2", "stmatrix.x4"};

}  // namespace

// Only the first 8 * count lanes name rows.
void ldmatrix(uint32_t* matrices, int count, uint32_t address, bool transpose) {
  FLAGATTN_HOST_EXEC_FRAME;
  MatrixMove load{matrices, count, transpose, address, {}};
  if (self->lane < 8 * count) {
    const std::byte* row = shared_pointer(address, 16, 16);
    observe_as_matrix_load();
    tsan::read(row, 16);
    std::memcpy(load.row, row, 16);
  }
  collective(kLoadNames[count / 2], kAllLanes, &load, false, [](const Meeting& m) {
    host_exec::count(Instruction::kMatrixLoad);
    distribute<true>(m);
  });
}

void stmatrix(const uint32_t* matrices, int count, uint32_t address, bool transpose) {
  FLAGATTN_HOST_EXEC_FRAME;
  uint32_t registers[4];
  tsan::copy_unseen(registers, matrices, sizeof(uint32_t) * count);
  MatrixMove store{registers, count, transpose, address, {}};
  collective(kStoreNames[count / 2], kAllLanes, &store, false, [](const Meeting& m) {
    host_exec::count(Instruction::kMatrixStore);
    distribute<false>(m);
  });
  if (self->lane < 8 * count) {
    std::byte* row = shared_pointer(address, 16, 16);
    observe_as_last_event();
    tsan::write(row, 16);
    std::memcpy(row, store.row, 16);
    written_by_thread(address, 16);
  }
}

namespace {

template <typename Number>
struct Product {
  Number* d;
  const uint32_t* a;
  const uint32_t* b;
  Numbers numbers_a, numbers_b;
};

// Sums in ascending k, fp32 for floats. Tensor cores align and truncate instead: bits differ, errors do not. kNumbers
// is the format of both operands where the compiler may know it.
inline constexpr int kAnyNumbers = -1;
template <typename Number, int kBytes, int kK, int kNumbers>
void multiply(const Meeting& m) {
  alignas(32) Number matrix_a[16][kK], matrix_b[kK][8], matrix_d[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = m.of<Product<Number>>(lane);
    const Numbers numbers_a = kNumbers == kAnyNumbers ? mine.numbers_a : static_cast<Numbers>(kNumbers);
    const Numbers numbers_b = kNumbers == kAnyNumbers ? mine.numbers_b : static_cast<Numbers>(kNumbers);
    for (int i = 0; i < 16 * kK / kWarpSize; ++i) {
      const Place place = place_in_a(lane, i, kBytes);
      matrix_a[place.row][place.column] = static_cast<Number>(widen(mine.a, i, numbers_a));
    }
    for (int i = 0; i < 8 * kK / kWarpSize; ++i) {
      const Place place = place_in_b(lane, i, kBytes);
      matrix_b[place.row][place.column] = static_cast<Number>(widen(mine.b, i, numbers_b));
    }
    for (int i = 0; i < 4; ++i) {
      const Place place = place_in_d(lane, i);
      matrix_d[place.row][place.column] = mine.d[i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < 8; ++n) matrix_d[row][n] += matrix_a[row][k] * matrix_b[k][n];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Place place = place_in_d(lane, i);
      m.of<Product<Number>>(lane).d[i] = matrix_d[place.row][place.column];
    }
  }
  count(Instruction::kMatrixProduct);
  machine->counters.matrix_flops += 2 * 16 * 8 * kK;
}

template <typename Number, Numbers kNumbers>
void multiply_16_bit(Product<Number>& product, bool wide) {
  constexpr int kFormat = static_cast<int>(kNumbers);
  collective(wide ? "mma.sync.m16n8k16" : "mma.sync.m16n8k8", kAllLanes, &product, false,
             wide ? multiply<Number, 2, 16, kFormat> : multiply<Number, 2, 8, kFormat>);
}

template <typename Number>
void multiply_8_bit(Product<Number>& product, bool wide) {
  collective(wide ? "mma.sync.m16n8k32" : "mma.sync.m16n8k16", kAllLanes, &product, false,
             wide ? multiply<Number, 1, 32, kAnyNumbers> : multiply<Number, 1, 16, kAnyNumbers>);
}

}  // namespace

void mma(float (&d)[4], const uint32_t* a, const uint32_t* b, Numbers numbers_a, Numbers numbers_b, int k_bytes) {
  Product<float> product{d, a, b, numbers_a, numbers_b};
  if (numbers_a == Numbers::kBFloat16) return multiply_16_bit<float, Numbers::kBFloat16>(product, k_bytes == 32);
  if (numbers_a == Numbers::kFloat16) return multiply_16_bit<float, Numbers::kFloat16>(product, k_bytes == 32);
  multiply_8_bit(product, k_bytes == 32);
}

void mma(int32_t (&d)[4], const uint32_t* a, const uint32_t* b, Numbers numbers_a, Numbers numbers_b, int k_bytes) {
  Product<int32_t> product{d, a, b, numbers_a, numbers_b};
  multiply_8_bit(product, k_bytes == 32);
}

}  // namespace flagattn::host_exec
