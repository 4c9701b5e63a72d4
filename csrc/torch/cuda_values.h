// FLAGATTN_CHECK=1: what the CUDA kernels clamp, because only values tell it, is fetched and refused as the CPU's ops
// refuse it. Every call then waits for the GPU.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

#include "attention/cache_checks.h"
#include "loss/targets.h"
#include "rotary/positions.h"
#include "torch/attention_values.h"
#include "torch/new_rows.h"
#include "torch/rotary_args.h"

namespace flagattn {

inline bool checks_values() {
  static const bool asked = [] {
    const char* text = std::getenv("FLAGATTN_CHECK");
    return text != nullptr && std::string_view(text) == "1";
  }();
  return asked;
}

// Copies of tensors that the host can read, for as long as it lives.
class HostCopies {
 public:
  const Tensor& of(const Tensor& tensor) {
    const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
    return copies_.emplace_back(torch::stable::contiguous(torch::stable::to(tensor, host)));
  }
  // In place of a pointer to the values of `tensor` on the device.
  template <typename T>
  void replace(const T*& data, const std::optional<Tensor>& tensor) {
    if (data != nullptr && tensor.has_value()) data = static_cast<const T*>(input_data(of(*tensor)));
  }

 private:
  std::vector<Tensor> copies_;
};

// Of all attention ops.
inline void check_values_if_asked(const AttentionArgs& args, AttentionParams params) {
  if (!checks_values()) return;
  HostCopies host;
  host.replace(params.cu_seqlens_q, args.cu_seqlens_q);
  host.replace(params.cu_seqlens_k, args.cu_seqlens_k);
  if (args.cache != nullptr) {
    CacheParams& cache = params.cache;
    host.replace(cache.seqlens, args.cache->seqlens);
    host.replace(cache.batch_idx, args.cache->batch_idx);
    host.replace(cache.leftpad, args.cache->leftpad);
    host.replace(cache.block_table, args.cache->block_table);
    if (cache.block_table != nullptr) cache.block_table_stride = cache.capacity / cache.page_size;
  }
  check_values(args, params);
  if (params.has_cache()) check(check_cache(params), args.op);
}

// Of the angles of rows behind what a cache holds.
inline void check_positions_if_asked(const RotaryArgs& args, const AttentionParams& params,
                                     const std::optional<Tensor>& seqlens, int64_t rows, bool each_its_own) {
  if (!checks_values()) return;
  HostCopies host;
  AttentionParams readable = params;
  host.replace(readable.cache.seqlens, seqlens);
  const std::vector<int64_t> positions = positions_behind(readable, rows, each_its_own);
  RotaryParams rotary = checked_rotary_params(args);
  rotary.positions64 = positions.data();
  rotary.positions_batch_stride = rotary.seqlen;
  check(check_positions(rotary), args.op);
}

// Of positions that are given.
inline Status check_positions_if_asked(RotaryParams params, const std::optional<Tensor>& positions) {
  if (!checks_values()) return Status::success();
  HostCopies host;
  host.replace(params.positions32, positions);
  host.replace(params.positions64, positions);
  return check_positions(params);
}

inline void check_targets_if_asked(const char* op, LossRows in, const Tensor& targets) {
  if (!checks_values()) return;
  HostCopies host;
  in.targets = static_cast<const int64_t*>(input_data(host.of(targets)));
  check(check_targets(in), op);
}

}  // namespace flagattn
