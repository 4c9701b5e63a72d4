// Attention over caches: the kernel that attends to splits of the keys, and the one that merges them.
#include "attention/cuda/sm80/decode.h"

#include "arch/ptx/launch.cuh"
#include "attention/cuda/sm80/checks.h"
#include "attention/cuda/sm80/decode_merge.cuh"

namespace flagattn::sm80 {

// Instantiated where instances.cmake says so.
template <typename Element, int kHeadDim>
Status launch_attention_decode(const DecodeArguments& arguments, Stream stream);

namespace {

template <typename Element>
Status launch_attention(const DecodeArguments& arguments, Stream stream) {
  switch (forward_kernel_head_dim(arguments.params.head_dim, arguments.params.head_dim_v)) {
    case 64:
      return launch_attention_decode<Element, 64>(arguments, stream);
    case 96:
      return launch_attention_decode<Element, 96>(arguments, stream);
    case 128:
      return launch_attention_decode<Element, 128>(arguments, stream);
    case 192:
      return launch_attention_decode<Element, 192>(arguments, stream);
    default:
      return launch_attention_decode<Element, 256>(arguments, stream);
  }
}

// Round after round: each finds its workspace free, as the stream runs them one by one.
template <typename Element>
Status launch(DecodeArguments arguments, Stream stream) {
  const int sequences = static_cast<int>(arguments.params.batch + arguments.params.is_packed());
  const int in_round = arguments.schedule.sequences;
  for (int first = 0; first < sequences; first += in_round) {
    arguments.first_sequence = first;
    arguments.schedule.sequences = sequences - first < in_round ? sequences - first : in_round;
    if (Status status = launch_attention<Element>(arguments, stream); !status.ok()) return status;
    const int64_t blocks = (arguments.schedule.merged_rows() + kMergeWarps - 1) / kMergeWarps;
    const Status status = ptx::launch<ptx::NoShared>(merge_splits_kernel<Element>, blocks, kMergeWarps * ptx::kWarpSize,
                                                     stream, arguments);
    if (!status.ok()) return status;
  }
  return Status::success();
}

}  // namespace

int64_t attention_decode_workspace(const AttentionParams& params) {
  return decode_schedule(params).workspace(params.head_dim_v);
}

Status run_attention_decode(const AttentionParams& params, float* workspace, Stream stream) {
  if (Status status = check_operands(params); !status.ok()) return status;
  const DecodeArguments arguments = DecodeArguments::of(params, workspace);
  return params.dtype == DType::kBFloat16 ? launch<BFloat16>(arguments, stream) : launch<Float16>(arguments, stream);
}

}  // namespace flagattn::sm80
