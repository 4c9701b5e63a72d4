"""What FlashAttention-2 shows of dropout: its place in the random stream, and a matrix that tells what was dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from flagattn.reference.dropout import dropout_keep_mask
from flagattn.reference.masks import keep_mask


def next_rng_state(dropout_p: float, device: torch.device) -> Tensor:
    """(seed, offset) of the next attention with dropout: what it will draw from torch's generator; zeros without."""
    if dropout_p == 0.0:
        return torch.zeros(2, dtype=torch.int64, device=device)
    on_cuda = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_cuda else torch.get_rng_state()
    drawn = torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=device)
    if on_cuda:
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
    return drawn


def signed_weights(
    q: Tensor,
    k: Tensor,
    softmax_scale: float | None,
    causal: bool,
    window: tuple[int, int],
    alibi_slopes: Tensor | None,
    dropout_p: float,
    rng_state: Tensor,
    packing: tuple[Tensor, Tensor, int, int] | None = None,
) -> Tensor:
    """exp(score - the row's maximum), negative where dropout took the weight; for looking at, not for computing with.

    Returns:
        (batch, heads_q, seqlen_q, seqlen_k), both lengths rounded up to multiples of 128, in q's dtype, on its device;
        computed on the CPU.
    """
    device = q.device
    q, k, rng_state = q.cpu(), k.cpu(), rng_state.cpu()
    alibi_slopes = None if alibi_slopes is None else alibi_slopes.cpu()
    packing = None if packing is None else (packing[0].cpu(), packing[1].cpu(), *packing[2:])
    if packing is None:
        lengths = [(q.shape[1], k.shape[1])] * q.shape[0]
        sequences = list(zip(q, k))
        longest_q, longest_k = q.shape[1], k.shape[1]
    else:
        cu_q, cu_k, longest_q, longest_k = packing
        rows, keys = cu_q.diff().tolist(), cu_k.diff().tolist()
        lengths = list(zip(rows, keys))
        used_q, used_k = q[: sum(rows)], k[: sum(keys)]
        sequences = list(zip(used_q.split(rows), used_k.split(keys)))
    batch, heads = len(lengths), q.shape[-2]
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    weights = q.new_zeros(batch, heads, -(-longest_q // 128) * 128, -(-longest_k // 128) * 128)
    kept = dropout_keep_mask(rng_state, dropout_p, batch, heads, longest_q, longest_k)
    for index, ((seqlen_q, seqlen_k), (rows_q, rows_k)) in enumerate(zip(lengths, sequences)):
        spread = rows_k.float().repeat_interleave(heads // k.shape[-2], dim=1)
        scores = torch.einsum("ihd,jhd->hij", rows_q.float(), spread) * scale
        if alibi_slopes is not None:
            slopes = alibi_slopes.float().expand(batch, heads)[index]
            distance = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q - torch.arange(seqlen_k)
            scores -= slopes[:, None, None] * distance.abs()
        scores.masked_fill_(~keep_mask(seqlen_q, seqlen_k, causal=causal, window_size=window), -torch.inf)
        if seqlen_k > 0:
            maxima = scores.amax(-1, keepdim=True)
            scores = (scores - maxima.masked_fill(maxima == -torch.inf, 0.0)).exp()
        signs = torch.where(kept[index, :, :seqlen_q, :seqlen_k], 1.0, -1.0)
        weights[index, :, :seqlen_q, :seqlen_k] = (scores * signs).to(q.dtype)
    return weights.to(device)
