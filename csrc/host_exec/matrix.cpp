// ldmatrix and mma.sync.
#include "host_exec/matrix.h"

#include <cstring>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

float widen(uint16_t bits, bool is_bfloat16) {
  if (is_bfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

struct MatrixLoad {
  uint32_t* matrices;
  uint32_t address;
  uint16_t row[8];
};

// The eight rows of one matrix are read at once: each 16-byte column of banks may serve one of them.
void count_bank_conflicts(void** arguments) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint32_t columns = 0;
    for (int r = 0; r < 8; ++r) {
      columns |= 1u << (static_cast<MatrixLoad*>(arguments[8 * matrix + r])->address / 16 % 8);
    }
    machine->counters.bank_conflicts += 8 - __builtin_popcount(columns);
  }
}

template <bool kTranspose>
void distribute(void** arguments) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      uint16_t pair[2];
      for (int e = 0; e < 2; ++e) {
        const Place place = place_in_8x8(lane, e);
        const int row = kTranspose ? place.column : place.row, column = kTranspose ? place.row : place.column;
        pair[e] = static_cast<MatrixLoad*>(arguments[8 * matrix + row])->row[column];
      }
      std::memcpy(&static_cast<MatrixLoad*>(arguments[lane])->matrices[matrix], pair, sizeof pair);
    }
  }
  ++machine->counters.matrix_loads;
  count_bank_conflicts(arguments);
}

}  // namespace

void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t address, bool transpose) {
  FLAGATTN_HOST_EXEC_FRAME;
  MatrixLoad load{matrices, address, {}};
  const std::byte* row = shared_pointer(address, 16, 16);
  tsan::read(row, 16);
  std::memcpy(load.row, row, 16);
  if (transpose) {
    collective("ldmatrix.trans", &load, distribute<true>);
  } else {
    collective("ldmatrix", &load, distribute<false>);
  }
}

// Sums in fp32 in ascending k. Tensor cores align and truncate instead: bits differ, errors do not.
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool is_bfloat16) {
  struct Product {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
    bool is_bfloat16;
  } product{d, a, b, is_bfloat16};
  collective("mma.sync", &product, [](void** arguments) {
    alignas(32) float matrix_a[16][16], matrix_b[16][8], matrix_d[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto& mine = *static_cast<Product*>(arguments[lane]);
      uint16_t halves_a[8], halves_b[4];
      std::memcpy(halves_a, mine.a, sizeof halves_a);
      std::memcpy(halves_b, mine.b, sizeof halves_b);
      for (int i = 0; i < 8; ++i) {
        const Place place = place_in_a(lane, i);
        matrix_a[place.row][place.column] = widen(halves_a[i], mine.is_bfloat16);
      }
      for (int i = 0; i < 4; ++i) {
        const Place place_b = place_in_b(lane, i), place_d = place_in_d(lane, i);
        matrix_b[place_b.row][place_b.column] = widen(halves_b[i], mine.is_bfloat16);
        matrix_d[place_d.row][place_d.column] = mine.d[i];
      }
    }
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) matrix_d[m][n] += matrix_a[m][k] * matrix_b[k][n];
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const Place place = place_in_d(lane, i);
        static_cast<Product*>(arguments[lane])->d[i] = matrix_d[place.row][place.column];
      }
    }
    ++machine->counters.matrix_products;
  });
}

}  // namespace flagattn::host_exec
