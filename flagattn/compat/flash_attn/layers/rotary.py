"""Rotary position embedding by the names of `flash_attn.layers.rotary`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn.compat.flash_attn.ops.triton.rotary import apply_rotary


def rotate_half(x: Tensor, interleaved: bool = False) -> Tensor:
    """(-x2, x1) of each pair of channels."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_emb_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """The formula in torch's own ops: x (batch, seqlen, heads, head_dim), cos and sin (..., seqlen, rotary_dim / 2)."""
    rotary_dim = 2 * cos.shape[-1]
    if rotary_dim > x.shape[-1]:
        raise ValueError(
            f"cos has shape {tuple(cos.shape)}, but x has head_dim {x.shape[-1]}; cos has at most half of it"
        )

    def of_channels(table: Tensor) -> Tensor:
        return (table.repeat_interleave(2, dim=-1) if interleaved else torch.cat((table, table), dim=-1)).unsqueeze(-2)

    rotated = x[..., :rotary_dim]
    rotated = rotated * of_channels(cos) + rotate_half(rotated, interleaved) * of_channels(sin)
    return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)


class ApplyRotaryEmb(torch.autograd.Function):
    """Rotates the rows of one tensor, in place where that is asked for; its gradient rotates back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, inplace: bool, options: dict[str, Any]) -> Tensor:
        # In place, x comes back as it is and not marked as written to, so that x may be a leaf.
        ctx.save_for_backward(cos, sin)
        ctx.inplace, ctx.options = inplace, options
        return apply_rotary(x, cos, sin, inplace=inplace, **options)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return apply_rotary(dout, cos, sin, conjugate=True, **ctx.options), None, None, None, None


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """`apply_rotary` with a gradient for x."""
    options = {"interleaved": interleaved, "seqlen_offsets": seqlen_offsets, "cu_seqlens": cu_seqlens}
    return ApplyRotaryEmb.apply(x, cos, sin, inplace, options)


apply_rotary_emb_func = apply_rotary_emb  # its name in older versions


class ApplyRotaryEmbParts(torch.autograd.Function):
    """Rotates some heads of a stacked tensor in place; the others, and their gradients, stay as they are."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, parts: Any, options: dict[str, Any]) -> Tensor:
        ctx.parts, ctx.options = parts, options
        for part_of, cos, sin in parts:
            apply_rotary(part_of(stacked), cos, sin, inplace=True, **options)
        return stacked

    @staticmethod
    def backward(ctx: Any, dstacked: Tensor) -> tuple[Tensor, None, None]:
        dstacked = dstacked.clone()  # the gradient that came may belong to somebody
        for part_of, cos, sin in ctx.parts:
            apply_rotary(part_of(dstacked), cos, sin, inplace=True, conjugate=True, **ctx.options)
        return dstacked, None, None


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """Rotate q and k of a stacked qkv in place, keys by tables of their own where cos_k and sin_k are given.

    Args:
        qkv: (batch, seqlen, 3, heads, head_dim), or (batch, seqlen, num_heads_q + 2 * num_heads_k, head_dim) with
            num_heads_q given.
    """
    if qkv.dim() == 5:
        if qkv.shape[2] != 3:
            raise ValueError(f"qkv has shape {tuple(qkv.shape)}; it must be (batch, seqlen, 3, heads, head_dim)")
        queries, keys = (lambda t: t[:, :, 0]), (lambda t: t[:, :, 1])
    else:
        if num_heads_q is None:
            raise ValueError(
                f"qkv has shape {tuple(qkv.shape)} and num_heads_q is None; without a dimension of 3 it is needed"
            )
        both = (qkv.shape[2] + num_heads_q) // 2
        queries, keys = (lambda t: t[:, :, :num_heads_q]), (lambda t: t[:, :, num_heads_q:both])
    parts = ((queries, cos, sin), (keys, cos if cos_k is None else cos_k, sin if sin_k is None else sin_k))
    return ApplyRotaryEmbParts.apply(qkv, parts, {"interleaved": interleaved, "seqlen_offsets": seqlen_offsets})


def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: int | Tensor = 0
) -> Tensor:
    """Rotate the keys of a stacked kv (batch, seqlen, 2, heads, head_dim) in place."""
    if kv.dim() != 5 or kv.shape[2] != 2:
        raise ValueError(f"kv has shape {tuple(kv.shape)}; it must be (batch, seqlen, 2, heads, head_dim)")
    parts = ((lambda t: t[:, :, 0], cos, sin),)
    return ApplyRotaryEmbParts.apply(kv, parts, {"interleaved": interleaved, "seqlen_offsets": seqlen_offsets})


class RotaryEmbedding(torch.nn.Module):
    """Rotary embedding with tables that grow with the longest sequence seen; XPos where `scale_base` is given.

    Sources: Su et al., "RoFormer", 2021; Sun et al., "A Length-Extrapolatable Transformer", 2022.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scale_base = scale_base
        channels = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        self.register_buffer("inv_freq", self.base ** (-channels / dim), persistent=False)
        scale = None if scale_base is None else (channels + 0.4 * dim) / (1.4 * dim)
        self.scale: Tensor | None
        self.register_buffer("scale", scale, persistent=False)
        self._tables: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None

    def _cos_sin(self, seqlen: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(cos, sin, cos of keys, sin of keys), the latter two None unless XPos scales them apart."""
        tables = self._tables
        if (
            tables is None
            or tables[0].shape[0] < seqlen
            or tables[0].device != like.device
            or tables[0].dtype != like.dtype
            or (self.training and tables[0].is_inference())
        ):
            positions = torch.arange(seqlen, device=like.device, dtype=torch.float32)
            # fp32, whatever the module was cast to: positions times frequencies need its 24 bits.
            channels = torch.arange(0, self.dim, 2, device=like.device, dtype=torch.float32)
            angles = torch.outer(positions, self.base ** (-channels / self.dim))
            cos, sin = angles.cos(), angles.sin()
            if self.scale is None or self.scale_base is None:
                tables = (cos.to(like.dtype), sin.to(like.dtype), None, None)
            else:
                power = (positions - seqlen // 2) / self.scale_base
                scale = self.scale.to(like.device, torch.float32) ** power.unsqueeze(1)
                both = (cos * scale, sin * scale, cos / scale, sin / scale)
                tables = tuple(table.to(like.dtype) for table in both)  # type: ignore[assignment]
            self._tables = tables
        return tables  # type: ignore[return-value]

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Any:
        """Rotate qkv in place and return it; with kv, qkv is q alone and (q, kv) is returned.

        A seqlen_offset given as (batch,) needs max_seqlen, for which the tables are made.
        """
        if max_seqlen is None:
            if isinstance(seqlen_offset, Tensor):
                raise ValueError("seqlen_offset is a tensor and max_seqlen is None; give the longest length")
            max_seqlen = qkv.shape[1] + seqlen_offset
        cos, sin, cos_k, sin_k = self._cos_sin(max_seqlen, qkv)
        if kv is None:
            return apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, self.interleaved, seqlen_offset, num_heads_q)
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, True, seqlen_offset)
        cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, self.interleaved, seqlen_offset)
