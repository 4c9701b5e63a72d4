"""The configuration of a training run: typed sections, read from YAML, overridden by key=value."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aquila2.config import PRESETS, Aquila2Config
from aquila2.training.option_rules import check
from aquila2.training.renamed import in_words_of_today
from aquila2.training.sections import build_section, convert

# Names of sources are folders, those of domains are members of records and stand in mixture=a:1,b:2.
NAME = re.compile(r"\w[\w.-]*")
RESERVED = ("all", "kind", "step", "crc32")
ENDINGS = (".tmp", ".deleted", ".aside", ".faulty")
# These change how a step is computed, and nothing about it but its rounding, so that a run may go on on other machines.
OF_THE_MACHINE = ("batch.micro", "train.device", "train.activation_checkpointing", "train.compile", "train.shares")

MAY_CHANGE = ("run", "monitor", "probe", "parallel")  # whole sections


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """One source of text: its name in reports, where it is, and its share of the training samples."""

    name: str
    path: str  # a folder, .txt, .md, .py, .jsonl or .parquet, or builtin:NAME (see aquila2.training.builtin)
    weight: float = 1.0
    domain: str | None = None  # the domain whose samples it gives, by default one of its own name; weights add up

    def __post_init__(self) -> None:
        for place, name in (("name", self.name), ("domain", self.domain or self.name)):
            if not NAME.fullmatch(name) or name in RESERVED or name.endswith(ENDINGS):
                raise ValueError(
                    f"the {place} of a source must be letters, digits, _, - and inner dots, and none of "
                    f"{', '.join(RESERVED)}, got {name!r}"
                )


@dataclass(frozen=True, kw_only=True)
class DecisionOptions:
    """A decision that holds from the end of a step on. Exactly one of the others beside `after` is given."""

    after: int
    mixture: dict[str, float] | None = None  # the weight of every domain; those left out give nothing
    lr: float | None = None  # the largest learning rate, in the place of optimizer.lr
    batch: int | None = None  # samples of a step, in the place of batch.size and its ramp
    stage: str | None = None  # a name, for reports
    skip: int | None = None  # samples that are drawn and not trained
    stop: str | None = None  # why the run saves and ends there


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """A folder with a tokenizer, or the size of one to train on the sources."""

    path: str | None = None
    vocab_size: int = 4104
    sample_bytes: int = 4_000_000  # text of all sources together that the trainer looks at


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Sources and how they are packed."""

    sources: list[SourceOptions] = field(default_factory=list)
    seq_len: int = 512
    heldout: float = 0.02  # share of documents kept out of training
    heldout_rows: int = 16  # rows per source that the held-out loss is measured on


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW, decaying matrices only."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # largest gradient norm; 0 turns clipping off


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning rate over samples: linear warm-up, then cosine, or constant with a linear end (wsd)."""

    kind: str = "cosine"
    warmup_samples: int = 0
    decay_samples: int = 0  # length of the end of wsd
    min_ratio: float = 0.1  # final learning rate as a share of the largest


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Sequences per micro-batch and per optimizer step, with an optional ramp of the latter."""

    micro: int = 8  # may change in a continuation
    size: int = 8
    ramp_start: int = 0  # first batch size; 0 turns the ramp off
    ramp_increment: int = 0
    ramp_samples: int = 0  # samples over which the ramp runs


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Length and arithmetic of the run. Checkpointing, compile, device and shares may change in its continuation."""

    samples: int = 1000
    seed: int = 1234
    precision: str = "fp32"  # fp32, or bf16: autocast with fp32 weights, residual stream, norms, angles and loss
    activation_checkpointing: bool = False
    compile: bool = False
    device: str = "cpu"
    shares: str = "equal"  # how ranks share a step: equal, or speed: by the rows per second that each shows


@dataclass(frozen=True, kw_only=True)
class ParallelOptions:
    """How ranks divide the model. These may change in a continuation, like the number of ranks."""

    shard: int = 1  # ranks that share one copy of weights, gradients and moments (FSDP); 0: as many as there are for it
    tensor: int = 1  # ranks that share the heads and channels of every layer, and take the same samples
    stages: list[int] = field(default_factory=list)  # layers of every pipeline stage; one rank of a copy has each
    replicate: int = 0  # copies of the weights; 0: as many as the ranks have room for, one where shard is 0 too

    @property
    def divides(self) -> bool:
        """Whether ranks may have parts of the weights only."""
        return self.shard != 1 or self.tensor != 1 or len(self.stages) > 1


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """What the monitor looks at, and does about a step that it objects to. These may change like those of `run`."""

    window: int = 64  # steps that a step is compared with
    sigmas: float = 6.0  # robust standard deviations from which on a loss or gradient norm is a spike
    score_rows: int = 1  # rows of each rank whose largest attention scores every step's record has; 0: none
    # What is done about a finding: warn; stop: the run saves and ends; rewind: it goes back to the newest checkpoint
    # from before, and all samples from there on are skipped; about a step also skip: it is not applied.
    spike: str = "warn"  # or skip, rewind, stop
    not_finite: str = "stop"  # or skip, rewind
    divergence: str = "warn"  # or rewind, stop
    plateau: str = "warn"  # or stop, like all below
    stuck: str = "warn"
    overfit: str = "warn"
    straggler: str = "warn"
    data_stall: str = "warn"
    no_better: str = "warn"


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Questions that the model is asked while it trains. These may change like those of `run`."""

    tasks: list[str] = field(default_factory=list)  # task files in lm_eval's form, or folders of them
    every: int = 0  # steps between probes; 0 probes before and after only
    limit: int = 0  # documents per task, the first ones; 0 takes all


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the run lives and what it writes. These may change between a run and its continuation."""

    folder: str = "runs/default"
    save_every: int = 0  # steps between checkpoints; 0 saves only at the end and on interruption
    save_minutes: float = 30.0  # minutes after which a checkpoint is made at the latest; 0 does without
    timeout_minutes: float = 30.0  # after which ranks that wait for another end; saving a large model may take longer
    save: str = "async"  # async: a copy is written while training goes on, which takes as much memory again; or sync
    keep: int = 2  # newest checkpoints kept, at least 1
    eval_every: int = 0  # steps between held-out losses; 0 measures before and after only
    tensorboard: bool = True
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class Options:
    """A whole run."""

    model: dict[str, Any] = field(default_factory=lambda: {"preset": "4m"})
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    run: RunOptions = field(default_factory=RunOptions)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    decisions: list[DecisionOptions] = field(default_factory=list)

    def __post_init__(self) -> None:
        check(self)
        self.model_config(
            self.tokenizer.vocab_size, 0, 0, 0
        )  # refuses a wrong model section before anything is written

    def model_config(self, vocab_size: int, bos: int, eos: int, pad: int) -> Aquila2Config:
        """The model's configuration: the preset, fitted to a tokenizer, then the fields given in the model section."""
        fields = dict(self.model)
        name = str(fields.pop("preset", "4m"))
        if name.lower() not in PRESETS:
            raise ValueError(f"model.preset must be one of {', '.join(PRESETS)}, got {name!r}")
        preset = Aquila2Config.named(name)
        fitted = preset.replace(
            vocab_size=-(-vocab_size // 8) * 8,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            max_position_embeddings=max(preset.max_position_embeddings, self.data.seq_len),
        )
        known = {f.name: f.type for f in dataclasses.fields(Aquila2Config)}
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"model has no option {unknown[0]!r}; it has preset, {', '.join(known)}")
        hints = typing.get_type_hints(Aquila2Config)
        return fitted.replace(**{key: convert(value, hints[key], f"model.{key}") for key, value in fields.items()})


def load_options(path: Path | str, overrides: Sequence[str] = ()) -> Options:
    """Reads a YAML file and applies overrides like `optimizer.lr=3e-4`.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: An unknown option, a value of the wrong type, or values that do not fit together.
    """
    return parse_options(overridden(read_entries(path), overrides))


def read_entries(path: Path | str) -> dict[str, Any]:
    """The sections of a YAML file, nothing of which is checked yet.

    Raises:
        FileNotFoundError: It is not there, or no file.
        ValueError: It is no YAML, or holds no sections.
    """
    if not Path(path).exists() or Path(path).is_dir():  # it may be a pipe
        raise FileNotFoundError(f"{path} is no file; the options of a run come from a YAML file")
    entries = _parse_yaml(Path(path).read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold sections with options, got {entries!r:.60}")
    return entries


def overridden(entries: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The entries, in which overrides like `optimizer.lr=3e-4` have been put.

    Raises:
        ValueError: One does not look like that.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"an override must look like section.key=value, got {override!r}")
        *sections, last = key.split(".")
        place = entries
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"{key} is not an option: {section} is not a section")
        place[last] = _parse_yaml(text, key)
    return entries


def _parse_yaml(text: str, place: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{place} is no YAML: {' '.join(str(error).split())}") from None


def parse_options(entries: Mapping[str, Any]) -> Options:
    """Options from nested mappings, e.g. parsed YAML."""
    return build_section(Options, in_words_of_today(entries) if isinstance(entries, Mapping) else entries, "")


def dump_options(options: Options) -> str:
    """The options as YAML, with every default spelled out."""
    return str(yaml.safe_dump(dataclasses.asdict(options), sort_keys=False, allow_unicode=True))


def changed_options(old: Options, new: Options) -> list[str]:
    """Dotted names of options that differ and may not change when a run is continued."""
    sections = [f.name for f in dataclasses.fields(Options) if f.name not in MAY_CHANGE]
    changed = []
    for section in sections:
        before, after = getattr(old, section), getattr(new, section)
        if isinstance(before, list):
            changed += [section] if before != after else []
        elif isinstance(before, dict):
            keys = sorted(set(before) | set(after))
            changed += [f"{section}.{key}" for key in keys if before.get(key) != after.get(key)]
        else:
            names = [f.name for f in dataclasses.fields(before)]
            changed += [f"{section}.{name}" for name in names if getattr(before, name) != getattr(after, name)]
    return [name for name in changed if name not in OF_THE_MACHINE]
