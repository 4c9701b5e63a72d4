"""Every shape the benches measure. Where nothing is measured each case is shrunk and run once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch

from bench.roofline import attention_bytes, attention_flops, visible_pairs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Relative L2 distance allowed between our result and a peer's of the same dtype.
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}


@dataclass(frozen=True)
class AttentionShape:
    """A self-attention call: `heads_q / group` key/value heads, as many keys as queries."""

    seqlen: int
    head_dim: int
    dtype: str
    group: int = 1
    causal: bool = False
    batch: int = 1
    heads_q: int = 12
    dist_threshold: int = 0  # piecewise cases only

    @property
    def heads_k(self) -> int:
        return self.heads_q // self.group

    @property
    def mask(self) -> str:
        return "causal" if self.causal else "full"

    @property
    def class_name(self) -> str:
        return f"{self.dtype} {self.mask}"

    @property
    def label(self) -> str:
        threshold = f" w {self.dist_threshold}" if self.dist_threshold else ""
        batch = f"B {self.batch} " if self.batch > 1 else ""
        return f"{batch}S {self.seqlen} D {self.head_dim} Hq {self.heads_q} GQA {self.group}{threshold}"

    @property
    def name(self) -> str:
        return f"{self.class_name} {self.label}".replace(" ", "-")

    @property
    def pairs(self) -> int:
        return visible_pairs(self.seqlen, self.seqlen, -1, 0 if self.causal else -1)

    def flops(self, *, backward: bool = False) -> float:
        return attention_flops(self.batch, self.heads_q, self.pairs, self.head_dim, backward=backward)

    def bytes(self, *, backward: bool = False) -> float:
        itemsize = DTYPES[self.dtype].itemsize
        sizes = (self.batch, self.seqlen, self.seqlen, self.heads_q, self.heads_k, self.head_dim, itemsize)
        return attention_bytes(*sizes, backward=backward)

    def shrunk(self) -> AttentionShape:
        return replace(self, seqlen=min(self.seqlen, 72), dist_threshold=min(self.dist_threshold, 20))


@dataclass(frozen=True)
class DecodeShape:
    """One query row per sequence against a cache of `context` keys, 32 query heads; page_size 0: contiguous."""

    context: int
    dtype: str
    group: int
    batch: int = 1
    page_size: int = 0
    heads_q: int = 32
    head_dim: int = 128

    @property
    def heads_k(self) -> int:
        return self.heads_q // self.group

    @property
    def label(self) -> str:
        pages = f" pages of {self.page_size}" if self.page_size else ""
        return f"B {self.batch} context {self.context} GQA {self.group}{pages}"

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.label}".replace(" ", "-")

    def bytes(self) -> float:
        """Keys and values once; queries and results are next to nothing."""
        elements = 2 * self.batch * self.context * self.heads_k * self.head_dim
        return float(elements * DTYPES[self.dtype].itemsize)

    def flops(self) -> float:
        return 4.0 * self.batch * self.context * self.heads_q * self.head_dim

    def shrunk(self) -> DecodeShape:
        return replace(
            self, context=min(self.context, 200), batch=min(self.batch, 2), page_size=min(self.page_size, 64)
        )


@dataclass(frozen=True)
class RowsShape:
    """A (rows, features) tensor: what norms and activations work on."""

    rows: int
    features: int
    dtype: str

    @property
    def elements(self) -> int:
        return self.rows * self.features

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def label(self) -> str:
        return f"{self.rows} x {self.features}"

    @property
    def name(self) -> str:
        return f"{self.dtype}-{self.rows}x{self.features}"

    def shrunk(self) -> RowsShape:
        return replace(self, rows=min(self.rows, 16), features=min(self.features, 96))


@dataclass(frozen=True)
class LinearShape:
    """Rows of features through a weight of (outputs, features)."""

    rows: int
    features: int
    outputs: int
    dtype: str

    @property
    def label(self) -> str:
        return f"M {self.rows} K {self.features} N {self.outputs}"

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.label}".replace(" ", "-")

    def shrunk(self) -> LinearShape:
        return replace(self, rows=min(self.rows, 5), features=40, outputs=24)


@dataclass(frozen=True)
class HeadShape:
    """A linear head over a vocabulary and the cross-entropy of its logits."""

    tokens: int
    features: int
    classes: int
    dtype: str

    @property
    def label(self) -> str:
        return f"{self.tokens} x {self.features} x {self.classes}"

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.label}".replace(" ", "-")

    def shrunk(self) -> HeadShape:
        return replace(self, tokens=24, features=40, classes=300)


@dataclass(frozen=True)
class RotaryShape:
    """A (1, seqlen, heads, head_dim) tensor whose whole head dim is rotated."""

    seqlen: int
    heads: int
    head_dim: int
    dtype: str

    @property
    def elements(self) -> int:
        return self.seqlen * self.heads * self.head_dim

    @property
    def label(self) -> str:
        return f"S {self.seqlen} H {self.heads} D {self.head_dim}"

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.label}".replace(" ", "-")

    def shrunk(self) -> RotaryShape:
        return replace(self, seqlen=9, heads=3)


_MASKS = (False, True)

ATTENTION_GRID = tuple(
    AttentionShape(seqlen, head_dim, dtype, group, causal)
    for dtype, causal, seqlen, head_dim, group in product(("fp32", "bf16"), _MASKS, (512, 2048), (64, 128), (1, 4, 6))
)

SHORT_SEQUENCES = tuple(
    AttentionShape(128, 64, dtype, group=4, causal=causal, batch=4, heads_q=32)
    for dtype, causal in product(("fp32", "bf16"), _MASKS)
)

PIECEWISE = tuple(
    AttentionShape(2048, head_dim, dtype, group=4, causal=causal, dist_threshold=512)
    for dtype, causal, head_dim in (
        ("fp32", False, 64),
        ("fp32", True, 128),
        ("bf16", False, 128),
        ("bf16", True, 64),
    )
) + (AttentionShape(4096, 64, "bf16", group=6, causal=True, dist_threshold=1000),)

ONE_HEAD = tuple(
    AttentionShape(4096, 128, dtype, causal=causal, heads_q=1) for dtype, causal in product(("fp32", "bf16"), _MASKS)
)

DECODE = tuple(
    DecodeShape(context, dtype, group, batch)
    for context, batch in ((8192, 1), (8192, 8), (1024, 1))
    for dtype, group in product(("fp32", "bf16"), (4, 8))
)
DECODE_PAGED = tuple(
    DecodeShape(8192, dtype, 4, page_size=page_size) for dtype, page_size in product(("fp32", "bf16"), (16, 256))
)
MASKED = (AttentionShape(1024, 64, "fp32", batch=2), AttentionShape(2048, 128, "bf16", heads_q=8))

NORM = (RowsShape(2048, 4096, "fp32"), RowsShape(2048, 4096, "bf16"))
ACTIVATION = NORM
LINEAR = tuple(LinearShape(rows, 1024, 4096, dtype) for dtype, rows in product(("fp32", "bf16"), (1, 16, 512, 2048)))
HEADS = (
    HeadShape(4096, 1024, 100_000, "fp32"),
    HeadShape(256, 256, 8_000, "bf16"),
)
LOGITS = (RowsShape(1024, 32_000, "fp32"), RowsShape(1024, 32_000, "bf16"))
ROTARY = (RotaryShape(2048, 32, 128, "fp32"), RotaryShape(2048, 32, 128, "bf16"))
