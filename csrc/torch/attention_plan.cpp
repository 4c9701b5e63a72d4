// How the CPU kernels would cut an attention problem; flagattn/explain.py turns it into sentences.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "attention/backward_schedule.h"
#include "attention/cpu/attention.h"
#include "attention/decode_schedule.h"
#include "attention/heuristics.h"
#include "torch/executor.h"
#include "torch/tensor_utils.h"

namespace flagattn {
namespace {

// Lines of name=value. For packed operands the lengths are the longest sequence's, and cu_seqlens say the others.
std::string attention_plan(int64_t batch, int64_t heads_q, int64_t heads_k, int64_t seqlen_q, int64_t seqlen_k,
                           int64_t head_dim, int64_t head_dim_v, bool piecewise,
                           const std::optional<Tensor>& cu_seqlens_q, const std::optional<Tensor>& cu_seqlens_k) {
  AttentionParams params;
  params.batch = batch;
  params.heads_q = heads_q;
  params.heads_k = heads_k;
  params.seqlen_q = seqlen_q;
  params.seqlen_k = seqlen_k;
  params.head_dim = head_dim;
  params.head_dim_v = head_dim_v;
  char present;
  if (piecewise) params.q2.data = &present;

  if (cu_seqlens_q.has_value() && cu_seqlens_k.has_value()) {
    for (const Tensor* cu_seqlens : {&*cu_seqlens_q, &*cu_seqlens_k}) {
      check_dtype("attention_plan", {"cu_seqlens", *cu_seqlens}, ScalarType::Int);
      check_shape("attention_plan", {"cu_seqlens", *cu_seqlens}, {batch + 1}, "(batch + 1,)");
    }
    params.cu_seqlens_q = static_cast<const int32_t*>(input_data(*cu_seqlens_q));
    params.cu_seqlens_k = static_cast<const int32_t*>(input_data(*cu_seqlens_k));
  }

  const int64_t threads = torch_threads().num_threads;
  const int64_t panel = cpu::attention_panel_columns();
  const CpuForwardConfig forward = cpu_forward_config(params, panel, threads);
  const RowShares shares = row_shares(params, panel);
  AttentionParams few = params;
  if (few.seqlen_q > shares.most_rows) few.seqlen_q = shares.most_rows;
  const DecodeSchedule decode = decode_schedule(few, threads);
  const BackwardSplit backward = backward_split(seqlen_q, heads_q / heads_k);

  std::string text;
  const auto line = [&text](const char* name, int64_t value) {
    text += std::string(name) + "=" + std::to_string(value) + "\n";
  };
  line("threads", threads);
  line("panel_columns", panel);
  line("decodes", shares.few ? 1 : 0);
  line("forwards", shares.many ? 1 : 0);
  line("decode_rows", shares.most_rows);
  line("decode_items", decode.num_items());
  line("decode_heads", decode.heads_per_item);
  line("most_decode_columns", panel < kMostDecodeColumns ? panel : kMostDecodeColumns);
  line("key_chunk", kCpuKeyChunk);
  line("forward_key_tile", kCpuKeyTile);
  line("forward_columns_per_item", forward.columns_per_item);
  line("forward_items", batch * heads_k * forward.items_per_group);
  line("backward_key_tile", kBackwardKeyTile);
  line("backward_columns_per_part", backward.columns_per_part);
  line("backward_parts", batch * heads_k * backward.parts);
  return text;
}

}  // namespace
}  // namespace flagattn

STABLE_TORCH_LIBRARY_IMPL(flagattn, CompositeExplicitAutograd, m) {
  m.impl("attention_plan", TORCH_BOX(&flagattn::attention_plan));
}
