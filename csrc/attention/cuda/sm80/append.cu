// New rows of caches: a thread takes eight channels of one head of one row.
#include "attention/cuda/sm80/append.h"

#include <string>

#include "arch/cuda/vector.cuh"
#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/cache_rows.cuh"
#include "attention/cuda/sm80/checks.h"

namespace flagattn::sm80 {
namespace {

constexpr int kThreads = 256, kChannels = 8;

struct AppendArguments {
  AttentionParams attention;
  AppendParams append;
  uint32_t items;  // batch * rows * heads * chunks
  uint32_t rows, heads, chunks;
};

// Eight channels of a head from `first` on, at the angles of a position.
template <typename Element>
FLAGATTN_DEVICE void rotate_channels(float (&x)[kChannels], const AppendParams& p, const Element* head, int first,
                                     int64_t b, int64_t position) {
  const int half_dim = static_cast<int>(p.half_dim);
  const int64_t cos_row = b * p.cos.batch_stride + position * p.cos.row_stride;
  const int64_t sin_row = b * p.sin.batch_stride + position * p.sin.row_stride;
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kChannels; ++i) {
    const int channel = first + i;
    if (channel >= 2 * half_dim || (p.interleaved && i % 2 == 1)) continue;
    const bool is_second = !p.interleaved && channel >= half_dim;
    const int angle = p.interleaved ? channel / 2 : is_second ? channel - half_dim : channel;
    const float cos = cuda::load_number(p.cos.data, p.table_dtype, cos_row + angle);
    const float sin = cuda::load_number(p.sin.data, p.table_dtype, sin_row + angle);
    if (p.interleaved) {
      const float own = x[i], other = x[i | 1];
      x[i] = fmaf(own, cos, -other * sin);
      x[i | 1] = fmaf(other, cos, own * sin);
    } else {
      const float other = ptx::widen(ptx::load_global(head + (is_second ? channel - half_dim : channel + half_dim)));
      x[i] = fmaf(x[i], cos, is_second ? other * sin : -other * sin);
    }
  }
}

template <typename Element>
FLAGATTN_KERNEL(kThreads, 4)
append_kernel(FLAGATTN_KERNEL_ARGUMENT AppendArguments arguments) {
  const AppendParams& p = arguments.append;
  const CacheParams& cache = arguments.attention.cache;
  const uint32_t item = static_cast<uint32_t>(ptx::block_index()) * kThreads + ptx::thread_index();
  if (item >= arguments.items) return;
  const int channel = static_cast<int>(item % arguments.chunks * kChannels);
  const uint32_t place = item / arguments.chunks, row_of_all = place / arguments.heads;
  const int64_t head = place % arguments.heads, row = row_of_all % arguments.rows, b = row_of_all / arguments.rows;

  // Where the row goes.
  const int64_t cached = rows_in_use(arguments.attention, static_cast<int>(b));
  auto* to = static_cast<Element*>(p.to.data) + head * p.to.head_stride + channel;
  if (!p.to_cache) {
    to += b * p.to.batch_stride + row * p.to.row_stride;
  } else {
    const int64_t at = cached + row;
    if (at < 0 || at >= cache.capacity) return;
    int64_t batch = b, in_batch = at;
    if (cache.block_table != nullptr) {
      batch = ptx::load_global(cache.block_table + b * cache.block_table_stride + at / cache.page_size);
      in_batch = at % cache.page_size;
    } else if (cache.batch_idx != nullptr) {
      batch = ptx::load_global(cache.batch_idx + b);
    }
    if ((batch < 0 || batch >= cache.rows) && !planted(Fault::kStrayWrite)) return;
    to += batch * p.to.batch_stride + in_batch * p.to.row_stride;
  }

  // What it becomes.
  const auto* from = static_cast<const Element*>(p.from.data) + b * p.from.batch_stride + row * p.from.row_stride +
                     head * p.from.head_stride;
  ptx::Bytes16 packed = ptx::load_global_16(from + channel);
  if (channel < 2 * p.half_dim) {
    const int64_t position = clamped(cached + (p.own_positions ? row : 0), p.num_positions - 1);
    float channels[kChannels];
    cuda::widen<Element>(packed, channels);
    rotate_channels(channels, p, from, channel, b, position);
    packed = cuda::narrow<Element>(channels);
  }
  ptx::store_global_16(to, packed);
}

template <typename Element>
Status launch(const AppendArguments& arguments, Stream stream) {
  const int64_t blocks = (int64_t{arguments.items} + kThreads - 1) / kThreads;
  return ptx::launch<ptx::NoShared>(append_kernel<Element>, blocks, kThreads, stream, arguments);
}

}  // namespace

Status run_append(const AttentionParams& attention, const AppendParams& append, Stream stream) {
  const std::string name = append.name;
  if (attention.dtype == DType::kFloat32) {
    return Status::error(name + " has dtype float32; attention on CUDA supports bfloat16 and float16");
  }
  const OperandSizes sizes{attention.batch, append.rows, append.heads};
  const OperandSizes sizes_to = append.to_cache ? sizes_of_k(attention) : sizes;
  if (append.head_dim % kChannels != 0 || !is_aligned(append.to, sizes_to) || !is_aligned(append.from, sizes)) {
    return Status::error(name +
                         " or its cache does not start at, or step in, multiples of 16 bytes as attention on CUDA "
                         "needs; call .contiguous() on it");
  }
  if (append.half_dim > 0 && append.num_positions == 0) {
    return Status::error("rotary_cos has no positions; it must have one for every row");
  }
  const int64_t chunks = append.head_dim / kChannels;
  const int64_t rows = attention.batch * append.rows, most = INT32_MAX / (append.heads * chunks);
  if (rows > most) {
    return Status::error(name + " has " + std::to_string(rows) + " rows; attention on CUDA appends at most " +
                         std::to_string(most) + " of its size in a call");
  }
  const AppendArguments arguments{attention,
                                  append,
                                  static_cast<uint32_t>(rows * append.heads * chunks),
                                  static_cast<uint32_t>(append.rows),
                                  static_cast<uint32_t>(append.heads),
                                  static_cast<uint32_t>(chunks)};
  return attention.dtype == DType::kBFloat16 ? launch<BFloat16>(arguments, stream) : launch<Float16>(arguments, stream);
}

}  // namespace flagattn::sm80
