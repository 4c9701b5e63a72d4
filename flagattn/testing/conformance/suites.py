"""The test-suites of other projects: their files, what they import, and which cases are left out for what reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flagattn.testing.conformance import liger


@dataclass(frozen=True)
class Deselection:
    """Cases that are not run: of these tests (of all if empty), where every parameter named has a value listed."""

    reason: str
    tests: tuple[str, ...] = ()
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def covers(self, test: str, params: Mapping[str, Any]) -> bool:
        if self.tests and test not in self.tests:
            return False
        return all(name in params and params[name] in values for name, values in self.where.items())


@dataclass(frozen=True)
class Suite:
    """One checkout's tests."""

    name: str
    repository: str
    files: tuple[str, ...]
    installs: tuple[str, ...]  # for flagattn.compat.install
    paths: tuple[str, ...] = ()  # folders of the checkout that its tests import from
    environment: Mapping[str, str] = field(default_factory=dict)
    capability: tuple[int, int] = (8, 0)  # what the tests are told the device can do
    stand_ins: tuple[str, ...] = ()  # modules that are imported and not used; empty ones take their place
    references: Mapping[str, str] = field(default_factory=dict)  # module -> file of the checkout it is loaded from
    imports: tuple[str, ...] = ("einops",)  # packages that the tests import
    prepare: Callable[[], None] | None = None  # runs last before the test files are imported
    deselected: tuple[Deselection, ...] = ()


def size_of(params: Mapping[str, Any]) -> int:
    """About how many scores one head of a case has, or logits a loss: what decides how long it takes on a CPU."""
    if "V" in params:
        return int(params["B"]) * int(params["T"]) * int(params["V"])
    rows = params.get("seqlen_q", params.get("M", params.get("seqlen", 128)))
    keys = params.get("seqlen_k", params.get("N", params.get("seqlen", params.get("max_seq_len", 128))))
    return int(rows) * int(keys)


_REPEATS = (
    "repeats a large case hundreds of times to provoke races between GPU blocks; tests/attention holds the bits fixed"
)
_RAW = "calls the CUDA extension's own functions by their argument slots"

_CHUNKS = "gives attention_chunk to a cache, in the same case; caches are read without it here"

FLASH_ATTENTION = Suite(
    name="flash-attention",
    repository="Dao-AILab/flash-attention",
    files=("tests/test_flash_attn.py", "tests/test_rotary.py"),
    installs=("flash_attn",),
    stand_ins=("triton",),
    deselected=(
        Deselection(_REPEATS, ("test_flash_attn_race_condition",)),
        Deselection(_RAW, ("test_flash_attn_generator_arg_must_be_none",)),
        Deselection(
            "demands an error for num_splits > 1, which changes no bits here and is accepted",
            ("test_flash_attn_varlen_paged_kv_num_splits",),
        ),
        Deselection("counts the compilations of a Triton kernel", ("test_compilation_count",)),
    ),
)

FLASH_ATTENTION_3 = Suite(
    name="flash-attention-3",
    repository="Dao-AILab/flash-attention",
    files=("hopper/test_flash_attn.py",),
    installs=("flash_attn", "flash_attn_3", "flash_attn_interface"),
    paths=("hopper",),
    environment={"FLASH_ATTENTION_DISABLE_FP8": "TRUE"},
    capability=(9, 0),
    deselected=(
        Deselection(_REPEATS, ("test_flash_attn_race_condition", "test_flash_attn_cluster")),
        Deselection("compares the schemas of the CUDA extension's ops", ("test_flash3_bw_compatibility",)),
        Deselection(
            "adds products of queries and values 256 and 512 wide to the scores; the kernels take 256 in all",
            ("test_flash_attn_output", "test_flash_attn_varlen_output"),
            {"has_qv": (True,)},
        ),
        Deselection(
            "packs the rows that are appended to a cache; they are dense here",
            ("test_flash_attn_kvcache",),
            {"varlen_q": (True,), "new_kv": (True,)},
        ),
        Deselection(_CHUNKS, ("test_flash_attn_kvcache",), {"causal": (True,)}),
        Deselection(_CHUNKS, ("test_flash_attn_kvcache",), {"local": (True,)}),
    ),
)

FLAG_ATTENTION = Suite(
    name="flag-attention",
    repository="FlagOpen/FlagAttention",
    files=(
        "tests/flag_attn/test_flash_attention.py",
        "tests/flag_attn/test_piecewise_attention.py",
        "tests/flag_attn/test_paged_attention.py",
        "tests/flag_attn/test_dropout.py",
    ),
    installs=("flag_attn",),
    references={
        "flash": "src/flag_attn/testing/flash.py",
        "piecewise": "src/flag_attn/testing/piecewise.py",
        "paged": "src/flag_attn/testing/paged.py",
    },
    deselected=(
        Deselection(
            "recomputes the dropout mask with a Triton random generator",
            ("test_recompute_mask", "test_attention_fwd_dropout", "test_attention_bwd_dropout"),
        ),
    ),
)

_CLASS_WEIGHTS = "weights classes and smooths labels at once; the loss here has weights by token"
_PREDICTIONS = "asks for predicted classes or their accuracy besides the loss, which the loss here does not give"

LIGER = Suite(
    name="liger",
    repository="linkedin/Liger-Kernel",
    files=(
        "test/transformers/test_rms_norm.py",
        "test/transformers/test_swiglu.py",
        "test/transformers/test_rope.py",
        "test/transformers/test_cross_entropy.py",
        "test/transformers/test_fused_linear_cross_entropy.py",
    ),
    installs=(),
    paths=("", "src"),
    imports=("transformers",),
    prepare=liger.prepare,
    deselected=(
        Deselection("needs four or eight GPUs", ("test_dtensor_rms_norm", "test_dtensor_liger_silumul")),
        Deselection("compares two forms of a Triton kernel", ("test_swiglu_blackwell_tiled_matches_original",)),
        Deselection("launches a Triton kernel by its own arguments", ("test_float32_internal",)),
        Deselection("calls Liger's fused mixture of experts", ("test_correctness_mixtralexperts",)),
        Deselection("has heads 41 wide, which the reference in transformers refuses", where={"head_dim": (41,)}),
        Deselection(_CLASS_WEIGHTS, ("test_correctness_with_weight_with_other_params_once",)),
        Deselection(_CLASS_WEIGHTS, where={"has_ce_weight": (True,)}),
        Deselection(_CLASS_WEIGHTS, where={"ce_weight": (True,)}),
        Deselection(_PREDICTIONS, ("test_correctness_with_predicted_tokens",)),
        Deselection(_PREDICTIONS, where={"return_token_accuracy": (True,)}),
        Deselection(_PREDICTIONS, where={"return_predicted_tokens": (True,)}),
    ),
)

SUITES = {suite.name: suite for suite in (FLASH_ATTENTION, FLASH_ATTENTION_3, FLAG_ATTENTION, LIGER)}
