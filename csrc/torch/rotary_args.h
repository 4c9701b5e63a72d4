// The arguments that all ops with a rotation share: checked, and written into RotaryParams.
#pragma once

#include <optional>

#include "rotary/params.h"
#include "torch/strided_rows.h"

namespace flagattn {

struct RotaryArgs {
  const char* op;
  const Tensor& x;
  const Tensor& cos;
  const Tensor& sin;
  bool interleaved;
  bool conjugate;
};

inline RotaryOperand rotary_operand(const Argument& argument, void* data) {
  const Sizes& strides = argument.strides;
  if (argument.dim() == 3) return {data, 0, strides[0], strides[1]};
  return {data, strides[0], strides[1], strides[2]};
}

// (num_positions, half_dim), or (batch or 1, num_positions, half_dim).
inline RotaryTable rotary_table(const Argument& table) {
  const Sizes& strides = table.strides;
  void* data = input_data(table.tensor);
  if (table.dim() == 2) return {data, 0, strides[0]};
  return {data, table.sizes[0] == 1 ? 0 : strides[0], strides[1]};
}

inline void fill_positions(const char* op, const Argument& positions, const Argument& x, RotaryParams& params) {
  check(positions.dtype == ScalarType::Int || positions.dtype == ScalarType::Long, op, "positions is ",
        name_of(positions.dtype), "; it must be int32 or int64.");
  check_same_device(op, positions, x);
  const int64_t rank = positions.dim();
  const bool fits = (rank == 1 || (rank == 2 && x.dim() == 4)) && positions.sizes[rank - 1] == params.seqlen &&
                    (rank == 1 || positions.sizes[0] == params.batch || positions.sizes[0] == 1);
  check(fits, op, "positions has shape ", text_of(positions.sizes), ", but x has ", text_of(x.sizes),
        "; it must be (batch, seqlen) or (seqlen,), or (total,) of packed x.");
  check(positions.tensor.is_contiguous(), op, "positions is not contiguous; it must be.");
  void* data = input_data(positions.tensor);
  if (positions.dtype == ScalarType::Int) {
    params.positions32 = static_cast<const int32_t*>(data);
  } else {
    params.positions64 = static_cast<const int64_t*>(data);
  }
  params.positions_batch_stride = rank == 2 && positions.sizes[0] != 1 ? params.seqlen : 0;
}

// Everything but y and the positions.
inline RotaryParams checked_rotary_params(const RotaryArgs& args) {
  const char* op = args.op;
  const Argument x("x", args.x), cos("cos", args.cos), sin("sin", args.sin);
  RotaryParams params;
  params.dtype = check_floating(op, x);
  check(x.dim() == 3 || x.dim() == 4, op, "x has shape ", text_of(x.sizes),
        "; it must be (batch, seqlen, heads, head_dim) or (total, heads, head_dim).");
  check_last_dim_contiguous(op, x);
  params.batch = x.dim() == 4 ? x.sizes[0] : 1;
  params.seqlen = x.sizes[x.dim() - 3];
  params.heads = x.sizes[x.dim() - 2];
  params.head_dim = x.sizes[x.dim() - 1];

  params.table_dtype = check_floating(op, cos);
  check_like(op, sin, cos);
  check_same_device(op, cos, x);
  const bool fits =
      cos.dim() == 2 || (cos.dim() == 3 && x.dim() == 4 && (cos.sizes[0] == params.batch || cos.sizes[0] == 1));
  check(fits, op, "cos has shape ", text_of(cos.sizes), ", but x has ", text_of(x.sizes),
        "; it must be (positions, rotary_dim / 2), or (batch, positions, rotary_dim / 2).");
  check_last_dim_contiguous(op, cos);
  check_last_dim_contiguous(op, sin);
  params.num_positions = cos.sizes[cos.dim() - 2];
  params.half_dim = cos.sizes[cos.dim() - 1];
  check(2 * params.half_dim <= params.head_dim, op, "cos rotates ", 2 * params.half_dim, " channels, but x has ",
        params.head_dim, "; they must be as many or fewer.");

  params.x = rotary_operand(x, input_data(args.x));
  params.cos = rotary_table(cos);
  params.sin = rotary_table(sin);
  params.interleaved = args.interleaved;
  params.conjugate = args.conjugate;
  return params;
}

}  // namespace flagattn
