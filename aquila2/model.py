"""Aquila2 as a decoder-only language model on flagattn's ops.

Shapes in comments: B rows, S tokens per row, T = B * S tokens packed, E hidden size, F SwiGLU width, V vocabulary,
Hq and Hk query and key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flagattn
from aquila2.cache import KVCache
from aquila2.config import Aquila2Config
from aquila2.context import AttentionContext, context_of
from aquila2.linear import Linear, are_plain, is_fp32

IGNORE_INDEX = -100

# Told a layer's number, its queries (B, S, Hq, D) and its keys (B, S, Hk, D), both rotated.
Observer = Callable[[int, Tensor, Tensor], None]

MlpFactory = Callable[[Aquila2Config, int], nn.Module]


class Aquila2Output(NamedTuple):
    """What the model returns: logits (B, S, V), or (N, V) at N asked places, and the mean loss where targets came."""

    logits: Tensor
    loss: Tensor | None


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain that starts at `config.norm_init`."""

    def __init__(self, config: Aquila2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((config.hidden_size,), config.norm_init))
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adds x to the residual stream and returns the normed sum and the sum; without residual x starts the stream.

        Under autocast the stream stays in the dtype of the embedding (fp32) while the branches come in 16 bit.
        """
        if residual is None:
            return flagattn.rms_norm(x, self.weight, self.eps), x
        return flagattn.rms_norm(x, self.weight, self.eps, residual=residual)


class SwiGLU(nn.Module):
    """The feed-forward branch: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Aquila2Config, layer: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = flagattn.swiglu(self.gate_proj(x), self.up_proj(x))  # (B, S, F)
        return cast(Tensor, self.down_proj(hidden))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, causal, over rows, packed documents or a cache."""

    def __init__(self, config: Aquila2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads_q, self.heads_k = config.num_attention_heads, config.num_key_value_heads
        self.observer: Observer | None = None
        self.interleaved = config.rope_interleaved
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(width, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = Linear(config.num_attention_heads * config.head_dim, width, bias=bias)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        heads = self._project(x).view(*x.shape[:2], -1, self.head_dim)  # (B, S, Hq + 2 Hk, D)
        turned, v = torch.split(heads, [self.heads_q + self.heads_k, self.heads_k], dim=2)
        turned = flagattn.apply_rotary(
            turned, context.cos, context.sin, interleaved=self.interleaved, positions=context.positions
        )
        q, k = torch.split(turned, [self.heads_q, self.heads_k], dim=2)  # (B, S, Hq, D), (B, S, Hk, D)
        if self.observer is not None:
            self.observer(self.layer, q, k)
        out: object
        if context.cache is not None:
            out = context.cache.attend(self.layer, q, k, v)
        elif context.cu_seqlens is not None:
            bounds, longest = context.cu_seqlens, context.max_seqlen
            out = flagattn.flash_attn_varlen_func(
                q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bounds, bounds, longest, longest, causal=True
            )  # (T, Hq, D)
        else:
            out = flagattn.flash_attn_func(q, k, v, causal=True)
        return cast(Tensor, self.o_proj(cast(Tensor, out).reshape(*x.shape[:2], -1)))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: (B, S, (Hq + 2 Hk) D).

        In training one product with the joined weights is faster than three narrow ones; joining costs nothing beside
        it. In generation the weights are what is read, so they are not copied.
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        if torch.is_grad_enabled() and are_plain(*parts):
            bias = torch.cat([part.bias for part in parts]) if self.q_proj.bias is not None else None
            return self.q_proj.product(x, torch.cat([part.weight for part in parts]), bias)
        return torch.cat([part(x) for part in parts], dim=-1)


class DecoderLayer(nn.Module):
    """One pre-norm layer. The residual stream travels beside the branch, so that each norm adds and norms at once."""

    def __init__(self, config: Aquila2Config, layer: int, mlp: MlpFactory) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = mlp(config, layer)

    def forward(self, x: Tensor, residual: Tensor | None, context: AttentionContext) -> tuple[Tensor, Tensor]:
        x, residual = self.input_layernorm(x, residual)
        x = self.self_attn(x, context)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


def reset_module(module: nn.Module, config: Aquila2Config) -> None:
    """Sets the module's own weights to a new model's; one that has none of these is left as it is."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, RMSNorm):
        nn.init.constant_(module.weight, config.norm_init)


class Aquila2Model(nn.Module):
    """The decoder without its output head."""

    def __init__(self, config: Aquila2Config, mlp: MlpFactory = SwiGLU) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, mlp) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)

    def forward(self, input_ids: Tensor, context: AttentionContext) -> Tensor:
        x, residual = self.embed_tokens(input_ids), None  # (B, S, E)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                x, residual = checkpoint(layer, x, residual, context, use_reentrant=False)
            else:
                x, residual = layer(x, residual, context)
        normed: Tensor = self.norm(x, residual)[0]
        return normed


class Aquila2ForCausalLM(nn.Module):
    """Aquila2 with its output head: token ids in, logits and optionally the next-token loss out.

    Args:
        config: Sizes and options.
        mlp: Makes the feed-forward branch of a layer from (config, layer index); the default is the dense `SwiGLU`.
    """

    def __init__(self, config: Aquila2Config, mlp: MlpFactory = SwiGLU) -> None:
        super().__init__()
        self.config = config
        self.model = Aquila2Model(config, mlp)
        self.batch_invariant = False
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all matrices from N(0, initializer_range), sets norm gains to norm_init and biases to zero."""
        for module in self.modules():
            reset_module(module, self.config)

    def set_activation_checkpointing(self, enabled: bool = True) -> None:
        """Keeps only the layers' inputs in training and recomputes the rest in the backward pass."""
        self.model.activation_checkpointing = enabled

    def set_batch_invariant(self, enabled: bool = True) -> None:
        """Makes every product of the model's `Linear` layers one whose rows do not depend on their batch.

        A token's logits and log-probability then have the same bits in training, in a prefill and in decoding with the
        cache, whatever else is in the batch and on any number of threads. `loss` makes the logits then.

        Raises:
            ValueError: A layer is a torch.nn.Linear of another kind, whose product cannot be switched.
        """
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.batch_invariant = enabled
            elif enabled and isinstance(module, nn.Linear):
                raise ValueError(
                    f"{name} is a {type(module).__name__}; a batch-invariant model is made of aquila2.Linear"
                )
        self.batch_invariant = enabled

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cache: KVCache | None = None,
        logits_at: Tensor | None = None,
    ) -> Aquila2Output:
        """Runs the decoder over rows of tokens.

        Args:
            input_ids: (B, S) int64 ids.
            targets: (B, S) int64: the id that should follow each token, -100 where nothing is to be learned. Note that
                they are shifted already, unlike the `labels` of transformers.
            positions: (B, S) int64 place of every token in its document; None: each row counts from 0, and with
                `cu_seqlens` each document does.
            cu_seqlens: (documents + 1,) int32 bounds of documents in the B * S tokens in row order, from 0 to B * S.
                Tokens see only their own document.
            max_seqlen: Length of the longest document; None: S.
            cache: Keys and values seen before, to which these tokens are appended (see `KVCache.begin`; no gradient).
            logits_at: (N,) int64 indices into the B * S tokens whose logits are wanted; None: all.

        Returns:
            Logits (B, S, V) or (N, V) in the dtype of the weights (autocast: its dtype), and the mean cross-entropy
            over all targets in fp32, None without targets. Where only the loss is wanted, `loss` is cheaper.

        Differentiable once in all weights. Matches `LlamaForCausalLM` of transformers on equal weights.
        """
        context = context_of(self.config, input_ids, positions, cu_seqlens, max_seqlen, cache)
        hidden = self.model(input_ids, context)  # (B, S, E)
        if logits_at is not None:
            hidden = hidden.flatten(0, 1)[logits_at]  # (N, E)
        logits = self.lm_head(hidden)
        if targets is None:
            return Aquila2Output(logits, None)
        loss = flagattn.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
        return Aquila2Output(logits, cast(Tensor, loss))

    def loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """The loss of `forward` without its logits, which need more memory in training than all else together.

        The head works in fp32, under autocast too. With no target at all the loss is 0, and with the reduction "none"
        it is each token's, (B, S), 0 where there is no target. A batch-invariant model makes its logits all the same,
        since products without them are torch's. So does one whose head is not a plain `Linear`, but has hooks (its own
        or those of all modules), an adapter or a parametrization; such a head works in fp32 if all its weights are
        fp32, and otherwise in the dtype that they and autocast give.
        """
        context = context_of(self.config, input_ids, positions, cu_seqlens, max_seqlen)
        hidden = self.model(input_ids, context)  # (B, S, E)
        if not are_plain(self.lm_head):
            logits = self._logits_of_changed_head(hidden)
            loss = flagattn.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction=reduction)
        elif self.batch_invariant:
            with torch.autocast(hidden.device.type, enabled=False):
                logits = self.lm_head.product(hidden, self.lm_head.weight.to(hidden.dtype), None)
            loss = flagattn.cross_entropy(
                logits, targets, ignore_index=IGNORE_INDEX, reduction=reduction, inplace_backward=True
            )
        else:
            loss = flagattn.linear_cross_entropy(
                hidden, self.lm_head.weight, targets, ignore_index=IGNORE_INDEX, reduction=reduction
            )
        return cast(Tensor, loss)

    def _logits_of_changed_head(self, hidden: Tensor) -> Tensor:
        if not is_fp32(self.lm_head):
            return cast(Tensor, self.lm_head(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            return cast(Tensor, self.lm_head(hidden.float()))
