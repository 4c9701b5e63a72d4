// Every op's schema, one line each. Implementations register per device in <op>.cpp and <op>_cuda.cpp; fake kernels and
// autograd in Python. Sizes that may vary between calls are SymInt, so that torch.compile need not specialise on them.
#include <torch/csrc/stable/library.h>

// clang-format off
STABLE_TORCH_LIBRARY(flagattn, m) {
  // attention
  m.def("attention_forward(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, int window_left, int window_right, float softcap, Tensor? bias=None, Tensor? keep=None, Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? rng_state=None, float dropout_p=0.0) -> (Tensor out, Tensor lse)");
  m.def("attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, int window_left, int window_right, float softcap, Tensor? bias=None, Tensor? keep=None, Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? rng_state=None, float dropout_p=0.0, bool needs_dbias=False) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)");
  m.def("piecewise_forward(Tensor q1, Tensor k1, Tensor q2, Tensor k2, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, SymInt dist_threshold, float softmax_scale, int window_left, int window_right, float softcap, Tensor? sinks=None) -> (Tensor out, Tensor lse)");
  m.def("piecewise_backward(Tensor dout, Tensor? dlse, Tensor q1, Tensor k1, Tensor q2, Tensor k2, Tensor v, Tensor out, Tensor lse, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, SymInt dist_threshold, float softmax_scale, int window_left, int window_right, float softcap, Tensor? sinks=None) -> (Tensor dq1, Tensor dk1, Tensor dq2, Tensor dk2, Tensor dv, Tensor dsinks)");
  m.def("attention_column_sums(Tensor q, Tensor k, Tensor lse, float softmax_scale, int window_left, int window_right) -> Tensor");
  m.def("attention_kvcache(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? cache_seqlens, Tensor? cache_batch_idx, Tensor? cache_leftpad, Tensor? block_table, float softmax_scale, int window_left, int window_right, float softcap, Tensor? alibi_slopes=None, Tensor? sinks=None) -> (Tensor out, Tensor lse)");
  m.def("attention_kvcache_varlen(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor? cache_seqlens, Tensor? cache_batch_idx, Tensor? cache_leftpad, Tensor? block_table, float softmax_scale, int window_left, int window_right, float softcap, Tensor? alibi_slopes=None, Tensor? sinks=None) -> (Tensor out, Tensor lse)");
  m.def("attention_kvcache_append(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor? rotary_cos, Tensor? rotary_sin, bool rotary_interleaved, Tensor? cache_seqlens, Tensor? cache_batch_idx, Tensor? cache_leftpad, Tensor? block_table, float softmax_scale, int window_left, int window_right, float softcap, Tensor? alibi_slopes=None, Tensor? sinks=None) -> (Tensor out, Tensor lse)");
  m.def("piecewise_kvcache(Tensor q1, Tensor k1_cache, Tensor q2, Tensor k2_cache, Tensor v_cache, Tensor? cache_seqlens, Tensor? cache_batch_idx, Tensor? cache_leftpad, Tensor? block_table, SymInt dist_threshold, float softmax_scale, int window_left, int window_right, float softcap, Tensor? sinks=None) -> (Tensor out, Tensor lse)");
  m.def("piecewise_kvcache_append(Tensor q1, Tensor(a!) k1_cache, Tensor q2, Tensor(b!) k2_cache, Tensor(c!) v_cache, Tensor k1, Tensor k2, Tensor v, Tensor? cache_seqlens, Tensor? cache_batch_idx, Tensor? cache_leftpad, Tensor? block_table, SymInt dist_threshold, float softmax_scale, int window_left, int window_right, float softcap, Tensor? sinks=None) -> (Tensor out, Tensor lse)");

  // fused ops
  m.def("rms_norm(Tensor x, Tensor weight, float eps, float offset, bool round_normalised) -> (Tensor y, Tensor rstd)");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, float offset, bool round_normalised) -> (Tensor y, Tensor summed, Tensor rstd)");
  m.def("rms_norm_backward(Tensor dy, Tensor? dsummed, Tensor s, Tensor weight, Tensor rstd, float offset, bool needs_dweight) -> (Tensor ds, Tensor dweight)");
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor y");
  m.def("swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor dgate, Tensor dup)");
  m.def("apply_rotary(Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool interleaved, bool conjugate) -> Tensor y");
  m.def("apply_rotary_(Tensor(a!) x, Tensor cos, Tensor sin, Tensor? positions, bool interleaved, bool conjugate) -> ()");
  m.def("batch_invariant_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor y");
  m.def("few_row_linear(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor y");
  m.def("few_row_gated_mlp(Tensor x, Tensor norm_weight, float eps, Tensor[] weights, Tensor[] biases) -> Tensor y");
  m.def("few_row_attention(Tensor x, Tensor norm_weight, float eps, Tensor[] weights, Tensor[] biases, Tensor out_weight, Tensor? out_bias, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cache_seqlens, Tensor? cache_leftpad, float softmax_scale, int window_left, int window_right, float softcap) -> Tensor y");
  m.def("attention_plan(int batch, int heads_q, int heads_k, int seqlen_q, int seqlen_k, int head_dim, int head_dim_v, bool piecewise, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None) -> str");

  // loss
  m.def("cross_entropy(Tensor logits, Tensor targets, Tensor? token_weights, int ignore_index, int reduction, float softcap, float z_loss, float label_smoothing) -> (Tensor loss, Tensor lse, Tensor lse_parts)");
  m.def("cross_entropy_backward(Tensor? dloss, Tensor? dlse, Tensor logits, Tensor targets, Tensor? token_weights, Tensor lse_parts, int ignore_index, int reduction, float softcap, float z_loss, float label_smoothing) -> Tensor dlogits");
  m.def("cross_entropy_backward_(Tensor? dloss, Tensor? dlse, Tensor(a!) logits, Tensor targets, Tensor? token_weights, Tensor lse_parts, int ignore_index, int reduction, float softcap, float z_loss, float label_smoothing) -> ()");
  m.def("linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, Tensor? token_weights, int ignore_index, int reduction, float softcap, float z_loss, float label_smoothing, bool takes_dhidden, bool takes_dweight) -> (Tensor loss, Tensor lse, Tensor lse_parts, Tensor dhidden, Tensor dweight)");
  m.def("linear_cross_entropy_backward(Tensor? dloss, Tensor? dlse, Tensor hidden, Tensor weight, Tensor targets, Tensor? token_weights, Tensor lse_parts, int ignore_index, int reduction, float softcap, float z_loss, float label_smoothing, bool needs_dhidden, bool needs_dweight) -> (Tensor dhidden, Tensor dweight)");

  // build and machine
  m.def("build_facts() -> str");
  m.def("cpu_level() -> (str level, str reason)");
  m.def("set_cpu_level(str level) -> bool");
}
// clang-format on
