"""The configuration: YAML, overrides, conversions, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from aquila2.cli import RECIPES
from aquila2.training.optim import batch_size, learning_rate
from aquila2.training.options import (
    BatchOptions,
    ScheduleOptions,
    changed_options,
    dump_options,
    load_options,
    parse_options,
)

SOURCES: dict[str, Any] = {"data": {"sources": [{"name": "a", "path": "b"}]}}


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SOURCES))
    options = load_options(
        path,
        ["optimizer.lr=3e-4", "train.samples=1e3", "train.activation_checkpointing=true", "model.preset=tiny"],
    )
    assert options.optimizer.lr == 3e-4  # which YAML alone takes for text
    assert options.train.samples == 1000
    assert options.train.activation_checkpointing is True
    assert options.model_config(300, 1, 2, 0).hidden_size == 64


def test_written_options_are_read_again() -> None:
    options = parse_options(SOURCES)
    assert parse_options(yaml.safe_load(dump_options(options))) == options


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    assert load_options(recipe).model_config(4104, 1, 2, 0).num_parameters > 0


def test_model_section_fits_the_tokenizer() -> None:
    options = parse_options({**SOURCES, "model": {"preset": "tiny", "norm_init": 0.3, "rope_theta": "1e6"}})
    config = options.model_config(301, 299, 300, 0)
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (304, 299, 300)
    assert (config.norm_init, config.rope_theta) == (0.3, 1e6)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data": {}}, "data.sources must name at least one source"),
        ({"optimiser": {}}, "the configuration has no option 'optimiser'; it has model, tokenizer"),
        ({**SOURCES, "optimizer": {"rate": 1}}, "optimizer has no option 'rate'; it has lr, "),
        ({**SOURCES, "optimizer": {"lr": "fast"}}, "optimizer.lr must be float, got 'fast'"),
        ({**SOURCES, "optimizer": {"lr": -1.0}}, "optimizer.lr must be finite and at least 0, got -1.0"),
        ({**SOURCES, "optimizer": {"lr": "nan"}}, "optimizer.lr must be finite and at least 0, got nan"),
        ({**SOURCES, "optimizer": {"beta2": 1.0}}, r"optimizer.beta2 must lie in \[0, 1\), got 1.0"),
        ({**SOURCES, "model": {"preset": "nope"}}, "model.preset must be one of aquila2-7b, .*, got 'nope'"),
        ({**SOURCES, "train": {"samples": 1.5}}, "train.samples must be int, got 1.5"),
        ({**SOURCES, "train": {"compile": 1}}, "train.compile must be bool, got 1"),
        ({**SOURCES, "monitor": {"plateau": "rewind"}}, "monitor.plateau must be warn or stop, got 'rewind'"),
        ({**SOURCES, "monitor": {"divergence": "skip"}}, "monitor.divergence must be warn, rewind or stop, got 'skip'"),
        ({**SOURCES, "monitor": {"score_rows": -1}}, "monitor.score_rows must be at least 0, got -1"),
        ({**SOURCES, "train": {"precision": "fp8"}}, "train.precision must be fp32 or bf16, got 'fp8'"),
        ({**SOURCES, "batch": {"micro": 4, "size": 6}}, r"batch.size must be a multiple of batch.micro \(4\), got 6"),
        ({**SOURCES, "batch": {"micro": 0}}, "batch.micro must be at least 1, got 0"),
        ({**SOURCES, "batch": {"micro": 0, "size": 0}}, "batch.micro must be at least 1, got 0"),
        ({**SOURCES, "batch": {"micro": -2}}, "batch.micro must be at least 1, got -2"),
        ({**SOURCES, "batch": {"size": 0}}, "batch.size must be a multiple of batch.micro"),
        ({**SOURCES, "batch": {"ramp_start": -8}}, "batch.ramp_start must be at least 0, got -8"),
        ({**SOURCES, "schedule": {"warmup_samples": -1}}, "schedule.warmup_samples must be at least 0, got -1"),
        ({**SOURCES, "schedule": {"decay_samples": -1}}, "schedule.decay_samples must be at least 0, got -1"),
        ({**SOURCES, "schedule": {"min_ratio": -0.1}}, r"schedule.min_ratio must lie in \[0, 1\], got -0.1"),
        ({**SOURCES, "schedule": {"min_ratio": "nan"}}, r"schedule.min_ratio must lie in \[0, 1\], got nan"),
        ({**SOURCES, "optimizer": {"clip": -1.0}}, "optimizer.clip must be at least 0, got -1.0"),
        ({**SOURCES, "run": {"save_every": -1}}, "run.save_every must be at least 0, got -1"),
        ({**SOURCES, "batch": {"ramp_start": 8}}, "batch.ramp_start needs positive"),
        ({**SOURCES, "schedule": {"kind": "step"}}, "schedule.kind must be cosine or wsd, got 'step'"),
        ({"data": {"sources": [{"name": "a"}]}}, "missing 1 required keyword-only argument: 'path'"),
        *(
            ({"data": {"sources": [{"name": name, "path": "b"}]}}, "the name of a source must be letters, digits")
            for name in ("", "../../../etc/z", "zh/wiki", "a,b", "a:b", ".hidden", "a.tmp", "all", "step", "kind")
        ),
        (
            {"data": {"sources": [{"name": "a", "path": "b", "domain": "all"}]}},
            "the domain of a source must be letters, digits, _, - and inner dots, and none of all, kind, step",
        ),
        ({**SOURCES, "run": {"save_minutes": -1}}, "run.save_minutes must be at least 0, got -1"),
        ({**SOURCES, "parallel": {"shard": -1}}, "parallel.shard must be at least 0, got -1"),
        ({**SOURCES, "parallel": {"shard": 0}, "train": {"shares": "speed"}}, "train.shares must be equal where"),
        ({**SOURCES, "parallel": {"stages": [1, 1]}, "train": {"compile": True}}, "train.compile must be false where"),
        ({**SOURCES, "parallel": {"tensor": 0}}, "parallel.tensor must be at least 1, got 0"),
        (
            {**SOURCES, "parallel": {"stages": [1, 1]}, "probe": {"tasks": ["a.yaml"]}},
            "probe.tasks must be empty where parallel.stages has several",
        ),
        ({"data": {"sources": "texts"}}, "data.sources must be a list, got 'texts'"),
        ({"data": {"sources": [{"name": "a", "path": "b"}] * 2}}, "data.sources must have different names"),
    ],
)
def test_refusals(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options(entries)


def test_unknown_model_option_and_bad_override(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model has no option 'width'; it has preset, vocab_size"):
        parse_options({**SOURCES, "model": {"width": 3}}).model_config(300, 1, 2, 0)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SOURCES))
    with pytest.raises(ValueError, match=r"an override must look like section\.key=value, got 'lr'"):
        load_options(path, ["lr"])


def test_options_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        file.write(yaml.safe_dump(SOURCES))
    assert load_options(f"/dev/fd/{reading}") == parse_options(SOURCES)
    os.close(reading)


def test_changes_that_forbid_continuing() -> None:
    first = parse_options(SOURCES)
    second = parse_options({**SOURCES, "model": {"preset": "tiny"}, "run": {"keep": 7}, "optimizer": {"lr": 1.0}})
    assert changed_options(first, second) == ["model.preset", "optimizer.lr"]
    elsewhere = {"compile": True, "device": "cuda", "activation_checkpointing": True, "shares": "speed"}
    third = parse_options({**SOURCES, "batch": {"micro": 4}, "train": elsewhere, "monitor": {"window": 32}})
    assert changed_options(first, third) == []
    assert changed_options(first, parse_options({**SOURCES, "train": {"seed": 2}})) == ["train.seed"]


def test_cosine_and_wsd() -> None:
    cosine = ScheduleOptions(kind="cosine", warmup_samples=10, min_ratio=0.1)
    assert learning_rate(5, 100, 2.0, cosine) == pytest.approx(1.0)
    assert learning_rate(10, 100, 2.0, cosine) == pytest.approx(2.0)
    assert learning_rate(55, 100, 2.0, cosine) == pytest.approx(1.1)
    assert learning_rate(100, 100, 2.0, cosine) == pytest.approx(0.2)
    wsd = ScheduleOptions(kind="wsd", warmup_samples=10, decay_samples=20, min_ratio=0.0)
    assert [learning_rate(n, 100, 2.0, wsd) for n in (5, 10, 50, 80, 90, 100)] == pytest.approx([1, 2, 2, 2, 1, 0])


def test_batch_ramp_as_published() -> None:
    """34B: 32 sequences, then 32 more at a time, up to 1024 after two million samples."""
    ramp = BatchOptions(micro=32, size=1024, ramp_start=32, ramp_increment=32, ramp_samples=2_000_000)
    assert batch_size(0, ramp) == 32
    assert batch_size(2_000_000 // 31 + 1, ramp) == 64
    assert batch_size(1_999_999, ramp) == 992
    assert batch_size(2_000_000, ramp) == 1024
    sizes = {batch_size(n, ramp) for n in range(0, 2_000_001, 1000)}
    assert sizes == set(range(32, 1025, 32))
