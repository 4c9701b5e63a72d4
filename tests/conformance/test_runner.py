"""The conformance runner on a checkout made here: device redirection, the draw, reasons, records and the summary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flagattn.testing.conformance.device import CudaMeansCpu
from flagattn.testing.conformance.plugin import drawn, even_shares, our_version
from flagattn.testing.conformance.suites import SUITES, Deselection, size_of

pytest.importorskip("einops")

ATTENTION = """
import pytest, torch
from flash_attn import flash_attn_func
from flash_attn.bert_padding import unpad_input

assert torch.cuda.get_device_capability("cuda") == (8, 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seqlen", [3, 5, 7, 4096])
def test_flash_attn_kvcache(seqlen, causal):
    assert seqlen < 4096
    q = torch.randn(1, seqlen, 2, 16, device="cuda").to("cuda:0").cuda()
    assert q.device.type == "cpu" and flash_attn_func(q, q, q, causal=causal).shape == q.shape


@pytest.mark.parametrize("num_splits", range(8))
def test_flash_attn_varlen_paged_kv_num_splits(num_splits):
    raise AssertionError("deselected")


@pytest.mark.parametrize("seqlen", [3, 5])
def test_flash_attn_that_fails(seqlen):
    assert seqlen == 3


def test_flash_attn_that_skips():
    pytest.skip("not for this device")


def test_flash_attn_race_condition():
    raise AssertionError("deselected")
"""
ROTARY = "import triton\n\n\ndef test_rotary():\n    pass\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    tests = tmp_path / "their checkout" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_flash_attn.py").write_text(ATTENTION)
    (tests / "test_rotary.py").write_text(ROTARY)
    return tests.parent


def run(checkout: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    output = checkout.parent / "out.json"
    command = [
        sys.executable,
        "-m",
        "flagattn.testing.conformance",
        "--suite",
        "flash-attention",
        "--src",
        str(checkout),
    ]
    done = subprocess.run([*command, "--output", str(output), *arguments], capture_output=True, text=True, check=False)
    return done, json.loads(output.read_text()) if output.exists() else {}


def test_a_run_counts_what_it_leaves_out_and_why(checkout: Path) -> None:
    done, result = run(checkout, "--cases", "0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (result["passed"], result["skipped"], len(result["failed"])) == (8, 1, 1)
    assert result["failed"][0]["case"].endswith("test_flash_attn_that_fails[5]")
    assert result["collected"] == 16 + 2 + 3 and result["larger"] == 2
    left_out = {reason.split()[0]: count for reason, count in result["deselected"].items()}
    assert left_out["repeats"] == 1 and sum(left_out.values()) == result["collected"] - 2 - 10
    assert result["tests"]["test_flash_attn_kvcache"] == {"passed": 6} and result["sampled"] == 10
    # The record holds every case, so a second run has nothing left to do.
    again, result_again = run(checkout, "--cases", "0")
    assert result_again["passed"] == 8 and "no tests ran" in again.stdout


def test_a_sample_is_the_same_for_a_seed(checkout: Path) -> None:
    _, result = run(checkout, "--cases", "5")
    assert result["sampled"] == 5 and result["eligible"] == 10


def test_a_folder_without_the_tests_is_named(tmp_path: Path) -> None:
    done, _ = run(tmp_path)
    assert done.returncode == 2 and "tests/test_flash_attn.py is missing" in done.stderr


def test_cuda_means_cpu_for_factories_and_methods() -> None:
    with CudaMeansCpu():
        x = torch.zeros(2, device=torch.device("cuda"))
        assert x.device.type == x.to("cuda", torch.float16).device.type == torch.arange(3, device="cuda:0").device.type
    assert x.device.type == "cpu"


def test_shares_are_even_and_draws_repeat() -> None:
    assert even_shares({"a": 2, "b": 100, "c": 100}, 32) == {"a": 2, "b": 15, "c": 15}
    assert sum(even_shares({"a": 9, "b": 9, "c": 9}, 10).values()) == 10
    assert even_shares({"a": 2}, 0) == {"a": 2}
    assert drawn(list(range(50)), 5, "s") == drawn(list(range(50)), 5, "s") != drawn(list(range(50)), 5, "t")


def test_every_deselection_has_a_reason_and_names_its_tests_or_parameters() -> None:
    for suite in SUITES.values():
        for deselection in suite.deselected:
            assert len(deselection.reason) > 20 and (deselection.tests or deselection.where)
    rule = Deselection("because of its head dim", ("test_a",), {"d": (3, 5)})
    assert (
        rule.covers("test_a", {"d": 5}) and not rule.covers("test_a", {"d": 4}) and not rule.covers("test_b", {"d": 5})
    )
    assert (
        size_of({"seqlen": 4}) == 16 and size_of({"M": 2, "N": 3}) == 6 and size_of({"seqlen_q": 1, "seqlen_k": 9}) == 9
    )


def test_every_case_tells_our_version(checkout: Path) -> None:
    _, result = run(checkout, "--cases", "4")
    assert result["ours"] == {our_version(): 4}  # the commit; "unknown" where git is not installed
    assert size_of({"B": 2, "T": 3, "V": 5, "H": 7}) == 30
