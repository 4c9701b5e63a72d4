"""The attention problems every kernel on every device must solve, in odd sizes and layouts; benches have their own."""

from __future__ import annotations

from dataclasses import dataclass

NO_WINDOW = (-1, -1)


@dataclass(frozen=True)
class AttentionCase:
    """One attention call. With `lengths` it is packed: (query rows, keys) of every sequence; else it is dense."""

    name: str
    seqlen_q: int = 0
    seqlen_k: int = 0
    batch: int = 1
    heads_q: int = 2
    heads_k: int = 2
    head_dim: int = 64
    head_dim_v: int = 0  # 0: the same as head_dim
    causal: bool = False
    window_size: tuple[int, int] = NO_WINDOW
    softcap: float = 0.0
    softmax_scale: float | None = None
    input_scale: float = 1.0
    lengths: tuple[tuple[int, int], ...] | None = None
    unused_rows: int = 0  # packed: rows behind the last sequence, in q and in k
    dist_threshold: int | None = None  # piecewise attention where set
    lse_gradient: bool = False
    layouts: tuple[str, str, str, str] = ("contiguous",) * 4  # of q, k, v and dout
    # What joins the scores. Shapes are spelt "bhqk", with 1 for a dimension that is repeated.
    bias: str = ""
    bias_hides: bool = False  # some of it is -inf, or the lowest number of its dtype
    keep: str = ""
    keep_kind: str = "random"  # or "right", "left" (padding), "blocks" (documents), "rare"
    alibi: str = ""  # "h" or "bh"
    sinks: bool = False
    dropout_p: float = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def is_packed(self) -> bool:
        return self.lengths is not None

    @property
    def is_masked(self) -> bool:
        """Only the op itself takes masks beside everything else."""
        return bool(self.bias or self.keep)

    @property
    def is_piecewise(self) -> bool:
        return self.dist_threshold is not None

    @property
    def value_dim(self) -> int:
        return self.head_dim_v or self.head_dim


def _dense(name: str, seqlen_q: int, seqlen_k: int, **fields: object) -> AttentionCase:
    return AttentionCase(name, seqlen_q, seqlen_k, **fields)  # type: ignore[arg-type]


def _packed(name: str, *lengths: tuple[int, int], **fields: object) -> AttentionCase:
    return AttentionCase(name, lengths=lengths, **fields)  # type: ignore[arg-type]


MIXED_LAYOUTS = ("heads_outside", "padded", "interleaved_rows", "odd_offset")
OTHER_LAYOUTS = ("padded", "odd_offset", "heads_outside", "interleaved_rows")

# ---- plain attention, dense ----

DENSE_CASES: tuple[AttentionCase, ...] = (
    # Lengths: below, at and above every tile size; more queries than keys and the other way round; nothing at all.
    _dense("one_row_one_key", 1, 1, batch=2, heads_q=3, heads_k=1, lse_gradient=True),
    _dense("one_row_many_keys", 1, 517, heads_q=8, heads_k=2, causal=True),
    _dense("few_rows_many_keys_causal", 5, 261, heads_q=6, heads_k=1, causal=True, batch=2),
    # A lone key has probability 1 whatever its score: without the LSE's, the gradients of q and k are exactly 0 and any
    # rounding at all would break the rule.
    _dense("many_rows_one_key", 131, 1, batch=2, lse_gradient=True),
    _dense("odd_square", 127, 127, batch=2, lse_gradient=True),
    _dense("tile_square_causal", 128, 128, batch=2, causal=True),
    _dense("odd_square_causal", 203, 203, heads_q=4, heads_k=2, causal=True, lse_gradient=True),
    _dense("long_causal", 613, 613, heads_q=2, heads_k=1, causal=True),
    _dense("long_full", 389, 650, heads_q=2, heads_k=1),
    _dense("fewer_queries_causal", 67, 259, causal=True, batch=2),
    _dense("more_queries_causal_has_empty_rows", 259, 67, causal=True, batch=2, lse_gradient=True),
    _dense("no_keys", 5, 0, lse_gradient=True),
    _dense("no_queries", 0, 5),
    _dense("no_batch", 7, 9, batch=0),
    # Grouped queries, powers of two or not.
    _dense("gqa_3", 65, 130, heads_q=6, heads_k=2, batch=2, causal=True),
    _dense("gqa_6_short", 33, 33, heads_q=12, heads_k=2, causal=True, head_dim=128),
    _dense("gqa_8_mqa", 77, 90, heads_q=8, heads_k=1, lse_gradient=True),
    _dense("gqa_6_rows_fit_no_tile", 23, 141, heads_q=18, heads_k=3, head_dim=32),
    # Head dims: smallest, odd multiples of 8, off the multiples of 8, and the value's own.
    _dense("dim_8", 70, 70, head_dim=8, causal=True),
    _dense("dim_16", 66, 131, head_dim=16),
    _dense("dim_24", 70, 70, head_dim=24, causal=True),
    _dense("dim_40", 67, 67, head_dim=40),
    _dense("dim_59", 67, 90, head_dim=59, causal=True, lse_gradient=True),
    _dense("dim_72", 67, 67, head_dim=72, causal=True),
    _dense("dim_80", 67, 129, head_dim=80),
    _dense("dim_96", 97, 97, head_dim=96, causal=True),
    _dense("dim_111", 50, 65, head_dim=111),
    _dense("dim_128_causal", 135, 135, head_dim=128, causal=True, lse_gradient=True),
    _dense("dim_160", 67, 67, head_dim=160),
    _dense("dim_192_value_128", 67, 100, head_dim=192, head_dim_v=128, causal=True, lse_gradient=True),
    _dense("dim_256", 65, 70, head_dim=256, causal=True),
    _dense("dim_64_value_256", 40, 67, head_dim=64, head_dim_v=256),
    _dense("dim_64_value_40", 67, 67, head_dim=64, head_dim_v=40, heads_q=3, heads_k=1),
    # Windows: each side alone, both, wider than the keys, empty, and with rows that see nothing.
    _dense("window_left", 203, 203, window_size=(17, -1)),
    _dense("window_left_causal", 261, 261, window_size=(64, 0), heads_q=4, heads_k=2, lse_gradient=True),
    _dense("window_right", 131, 203, window_size=(-1, 30)),
    _dense("window_both", 270, 270, window_size=(33, 20), heads_q=3, heads_k=1),
    _dense("window_itself_only", 90, 90, window_size=(0, 0), lse_gradient=True),
    _dense("window_wider_than_keys", 70, 70, window_size=(400, 500)),
    _dense("window_more_queries", 200, 70, window_size=(20, 10), lse_gradient=True),
    _dense("window_fewer_queries", 70, 300, window_size=(90, 3)),
    _dense("window_right_overruled_by_causal", 80, 80, window_size=(30, 30), causal=True),
    # Scores: soft capped, strongly scaled, large enough to need the running maximum.
    _dense("softcap", 130, 130, softcap=15.0, input_scale=3.0, causal=True, lse_gradient=True),
    _dense("softcap_small", 67, 90, softcap=2.0, head_dim=128, heads_q=4, heads_k=2),
    _dense("own_scale", 67, 67, softmax_scale=0.3),
    _dense("zero_scale", 33, 67, softmax_scale=0.0),
    _dense("negative_scale", 67, 67, softmax_scale=-0.2, causal=True),
    _dense("large_scores", 129, 257, input_scale=6.0),
    # Layouts: every operand its own, elements around it NaN.
    _dense("layouts_mixed", 77, 141, batch=2, heads_q=4, heads_k=2, causal=True, layouts=MIXED_LAYOUTS),
    _dense("layouts_other", 131, 67, batch=2, heads_q=6, heads_k=2, layouts=OTHER_LAYOUTS, lse_gradient=True),
    _dense("layouts_dim_40", 70, 70, batch=2, head_dim=40, head_dim_v=24, layouts=MIXED_LAYOUTS),
    _dense("layouts_dim_59", 66, 40, batch=2, head_dim=59, head_dim_v=61, layouts=OTHER_LAYOUTS, causal=True),
)

# ---- plain attention, packed ----

VARLEN_CASES: tuple[AttentionCase, ...] = (
    _packed("one_sequence", (100, 100), causal=True),
    _packed("odd_lengths", (113, 113), (1, 1), (64, 64), (7, 7), causal=True, heads_q=6, heads_k=2, lse_gradient=True),
    _packed("full", (33, 70), (128, 64), (5, 200), heads_q=4, heads_k=2),
    _packed("empty_sequences", (0, 0), (40, 40), (0, 0), (17, 17), (0, 0), causal=True, lse_gradient=True),
    _packed("queries_without_keys", (20, 0), (35, 35), (9, 0), lse_gradient=True),
    _packed("keys_without_queries", (0, 20), (35, 35), (0, 9)),
    _packed("all_empty", (0, 0), (0, 0)),
    _packed("rectangles_causal", (70, 200), (200, 70), (3, 90), (90, 3), causal=True, lse_gradient=True),
    _packed("decode_rows", (1, 300), (1, 5), (1, 64), (1, 129), causal=True, heads_q=8, heads_k=1, head_dim=128),
    _packed("window", (150, 150), (20, 90), (90, 20), window_size=(25, 10), heads_q=6, heads_k=1),
    _packed("softcap_dim_80", (67, 67), (30, 41), softcap=10.0, head_dim=80, head_dim_v=96, input_scale=2.0),
    _packed("unused_rows", (50, 60), (31, 20), causal=True, unused_rows=13, layouts=MIXED_LAYOUTS, lse_gradient=True),
    _packed("layouts", (66, 66), (0, 5), (130, 150), heads_q=6, heads_k=3, layouts=OTHER_LAYOUTS, causal=True),
    _packed("many_short", *((n % 9, (n * 5) % 11) for n in range(40)), heads_q=4, heads_k=2, head_dim=32, causal=True),
)

# ---- piecewise attention ----

PIECEWISE_CASES: tuple[AttentionCase, ...] = (
    # Thresholds: all far, all near, on and off tile borders, ahead of the diagonal.
    _dense("all_far_zero", 70, 70, dist_threshold=0, causal=True),
    _dense("all_far_negative", 70, 90, dist_threshold=-100),
    _dense("some_near_ahead", 130, 130, dist_threshold=-31, lse_gradient=True),
    _dense("one_near", 131, 131, dist_threshold=1, causal=True, lse_gradient=True),
    _dense("aligned", 260, 260, dist_threshold=64, causal=True, heads_q=4, heads_k=2),
    _dense("off_by_one", 259, 259, dist_threshold=65, causal=True, lse_gradient=True),
    _dense("full_mask", 203, 261, dist_threshold=100, heads_q=3, heads_k=1),
    _dense("last_key_far", 128, 128, dist_threshold=127, causal=True),
    _dense("all_near_at_length", 128, 128, dist_threshold=128, causal=True),
    _dense("all_near_beyond", 67, 131, dist_threshold=10_000, causal=True),
    _dense("huge_threshold", 33, 33, dist_threshold=1 << 40),
    _dense("huge_negative_threshold", 33, 33, dist_threshold=-(1 << 40)),
    # Shapes.
    _dense("one_row", 1, 300, dist_threshold=90, causal=True, heads_q=6, heads_k=1),
    _dense("more_queries", 203, 90, dist_threshold=40, causal=True, lse_gradient=True),
    _dense("fewer_queries", 70, 350, dist_threshold=150, causal=True, batch=2),
    _dense("gqa_6_dim_128", 77, 140, dist_threshold=50, causal=True, heads_q=12, heads_k=2, head_dim=128),
    _dense("long", 613, 613, dist_threshold=200, causal=True, heads_q=2, heads_k=1),
    _dense("dim_40_value_72", 90, 90, dist_threshold=33, causal=True, head_dim=40, head_dim_v=72),
    _dense("dim_59", 67, 67, dist_threshold=20, head_dim=59),
    _dense("dim_256", 65, 65, dist_threshold=20, causal=True, head_dim=256),
    _dense("no_keys", 5, 0, dist_threshold=1),
    # With a window, a soft cap, layouts.
    _dense("window", 203, 203, dist_threshold=40, window_size=(90, 5), heads_q=6, heads_k=2, lse_gradient=True),
    _dense("window_inside_near", 150, 150, dist_threshold=70, window_size=(50, 0)),
    _dense("softcap", 130, 130, dist_threshold=31, softcap=10.0, input_scale=2.0, causal=True),
    _dense("layouts", 77, 141, batch=2, dist_threshold=44, heads_q=4, heads_k=2, causal=True, layouts=MIXED_LAYOUTS),
    # Packed.
    _packed("packed", (113, 113), (1, 1), (64, 200), (7, 7), dist_threshold=50, causal=True, heads_q=6, heads_k=2),
    _packed("packed_full", (40, 90), (0, 7), (90, 40), (9, 0), dist_threshold=17, lse_gradient=True),
    _packed(
        "packed_unused_rows",
        (70, 90),
        (80, 33),
        dist_threshold=20,
        causal=True,
        unused_rows=5,
        layouts=OTHER_LAYOUTS,
    ),
)

# ---- masks, biases, ALiBi, sinks, dropout ----

SCORE_CASES: tuple[AttentionCase, ...] = (
    # Masks of keys, of rows, of everything; tiles that nobody sees, rows that see nothing.
    _dense("keep_padding_right", 70, 300, batch=3, keep="b11k", keep_kind="right", heads_q=4, heads_k=2),
    _dense("keep_padding_left", 300, 300, batch=3, keep="b11k", keep_kind="left", causal=True, lse_gradient=True),
    _dense("keep_keys", 131, 270, batch=2, keep="b11k", heads_q=6, heads_k=2, lse_gradient=True),
    _dense("keep_whole", 67, 290, batch=2, keep="bhqk", heads_q=4, heads_k=2),
    _dense("keep_heads", 67, 130, keep="1h1k", heads_q=6, heads_k=2, causal=True),
    _dense("keep_blocks", 400, 400, keep="11qk", keep_kind="blocks", lse_gradient=True),
    _dense("keep_rare", 60, 1100, keep="11qk", heads_q=4, heads_k=4, keep_kind="rare", lse_gradient=True),
    _dense("keep_rows", 90, 70, keep="b1q1", batch=2, lse_gradient=True),
    _dense("keep_softcap_window", 150, 150, keep="bhqk", softcap=5.0, window_size=(60, 20)),
    _dense("keep_layouts", 77, 141, batch=2, keep="b11k", heads_q=4, heads_k=2, layouts=MIXED_LAYOUTS),
    # Biases, with their gradient summed over what they repeat.
    _dense("bias_whole", 67, 150, batch=2, bias="bhqk", heads_q=4, heads_k=2, lse_gradient=True),
    _dense("bias_heads", 131, 67, batch=3, bias="1hqk", heads_q=4, heads_k=1, causal=True),
    _dense("bias_keys", 67, 600, batch=2, bias="b11k"),
    _dense("bias_rows", 90, 70, bias="b1q1", batch=2, lse_gradient=True),
    _dense("bias_of_one_element", 40, 70, bias="1111", lse_gradient=True),
    _dense("bias_hides", 133, 270, batch=2, bias="b1qk", bias_hides=True, lse_gradient=True),
    _dense("bias_hides_keys", 67, 400, batch=2, bias="b11k", bias_hides=True, heads_q=4, heads_k=2),
    _dense("bias_softcap", 67, 90, bias="1hqk", softcap=3.0, head_dim=128),
    _dense("bias_negative_scale", 67, 67, bias="11qk", softmax_scale=-0.2, causal=True),
    _dense("bias_and_keep", 90, 200, batch=2, bias="1hqk", keep="b11k", heads_q=4, heads_k=2, dropout_p=0.2),
    _dense("bias_long", 50, 1300, bias="1hqk", sinks=True, head_dim=32),
    # ALiBi.
    _dense("alibi", 203, 203, alibi="h", causal=True, heads_q=6, heads_k=2, lse_gradient=True),
    _dense("alibi_sequences", 70, 300, batch=2, alibi="bh"),
    _dense("alibi_window_softcap", 270, 150, alibi="h", window_size=(90, 10), softcap=8.0, lse_gradient=True),
    _packed("alibi_packed", (113, 113), (1, 300), (64, 20), alibi="bh", causal=True, heads_q=6, heads_k=2),
    # Sinks.
    _dense("sinks", 131, 203, sinks=True, heads_q=6, heads_k=2, batch=2, lse_gradient=True),
    _dense("sinks_empty_rows", 200, 70, sinks=True, causal=True, lse_gradient=True),
    _dense("sinks_window", 203, 203, sinks=True, heads_q=8, window_size=(30, 0), softcap=10.0),
    _packed("sinks_packed", (70, 200), (0, 5), (90, 3), (9, 0), sinks=True, causal=True, lse_gradient=True),
    _packed("sinks_unused_rows", (50, 60), (31, 20), sinks=True, unused_rows=13, causal=True),
    _dense("sinks_piecewise", 203, 203, dist_threshold=50, sinks=True, causal=True, window_size=(120, 0)),
    _packed("sinks_piecewise_packed", (113, 113), (64, 200), dist_threshold=50, sinks=True, lse_gradient=True),
    # Dropout.
    _dense("dropout", 131, 203, dropout_p=0.3, batch=2, heads_q=6, heads_k=2, causal=True, lse_gradient=True),
    _dense("dropout_most", 67, 67, dropout_p=0.9),
    _dense("dropout_long", 40, 1300, dropout_p=0.1, head_dim=32, sinks=True, alibi="h"),
    _packed("dropout_packed", (70, 90), (5, 5), (33, 140), dropout_p=0.25, heads_q=4, heads_k=2, lse_gradient=True),
)
