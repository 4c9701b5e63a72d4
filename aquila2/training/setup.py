"""A run's folder before the first step: whose it is, its options, its tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import yaml

from aquila2.atomic import atomic_write
from aquila2.heurimentor.data.segment import FACTS, Segment
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.verified import NotVerified, read_manifest, set_aside, verified_file, verify
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import FAULTY, OPTIONS, list_checkpoints
from aquila2.training.data import SPLITS, prepare_source, segment_folder, source_documents
from aquila2.training.options import (
    Options,
    SourceOptions,
    changed_options,
    dump_options,
    load_options,
    parse_options,
)

STOPPED = "stopped.txt"  # in a run's folder: why the run has ended by itself
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")


def claim(folder: Path, options: Options) -> None:
    """Stores the options of a new run, and refuses to continue a run with other ones.

    A run without a checkpoint has nothing to continue, as where its first command failed: it takes the new options.
    """
    stored = folder / "config.yaml"
    if any((folder / "checkpoints").glob("step-*")):
        before = _options_of(folder)
        changed = changed_options(before, options) if before else []
        if changed:
            raise ValueError(
                f"run.folder {folder} holds a run with another {', '.join(changed)}; give another folder or its options"
            )
    elif stored.is_file():
        _take_new_options(folder, stored, options)
    atomic_write(stored, dump_options(options))


def _take_new_options(folder: Path, stored: Path, options: Options) -> None:
    """Says what changes, and makes the run make its tokenizer and data again."""
    try:
        changed = changed_options(load_options(stored), options)
    except ValueError:
        changed = ["configuration"]
    if changed:
        _say(f"{folder} has no checkpoint yet, so its run starts with the new {', '.join(changed)}")
        made = folder / "tokenizer"
        given = options.tokenizer.path
        if given is None or Path(given).resolve() != made.resolve():
            (made / "tokenizer.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "data", ignore_errors=True)
        for name in ("metrics.jsonl", NAME):
            (folder / name).unlink(missing_ok=True)


def _options_of(folder: Path) -> Options | None:
    """The options that a run with checkpoints has: a checkpoint's, which are hashed, before those of `config.yaml`.

    Raises:
        ValueError: They are there and are none of this version, so that nothing tells whether the run is continued.
    """
    stored = folder / "config.yaml"
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        try:
            kept = verified_file(checkpoint, OPTIONS)
        except (NotVerified, OSError):
            continue
        try:
            options = parse_options(yaml.safe_load(kept))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"{checkpoint / OPTIONS} is whole and not of this version ({error}); continue the run with its own"
            ) from None
        try:
            differs = bool(changed_options(load_options(stored), options))
        except (OSError, ValueError):
            differs = True
        if differs:
            _say(f"{stored} is not what {checkpoint.name} keeps of it, which is taken")
        return options
    try:
        return load_options(stored)
    except ValueError as error:
        raise ValueError(
            f"{stored} cannot be read ({error}), and no checkpoint keeps a copy; restore it, or remove it where the "
            "options given are those of the run"
        ) from None
    except OSError:
        _say(f"{stored} is missing, and no checkpoint keeps a copy: the options given are taken")
        return None


def heal_tokenizer(folder: Path) -> None:
    """Takes the tokenizer of a run with checkpoints from the newest that has it, where its files have changed."""
    made = folder / "tokenizer"
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        try:
            names = sorted(read_manifest(checkpoint)["files"])
            kept = {name: verified_file(checkpoint, name) for name in names if name in TOKENIZER_FILES}
        except (NotVerified, OSError, KeyError):
            continue
        changed = [
            name
            for name, content in kept.items()
            if not (made / name).is_file() or (made / name).read_bytes() != content
        ]
        made.mkdir(exist_ok=True)
        for name in changed:
            atomic_write(made / name, kept[name])
        if changed:
            _say(f"{made} has other {', '.join(changed)} than {checkpoint.name}, from which they are taken")
        return


def mend_data(folder: Path, options: Options, tokenizer: Aquila2Tokenizer) -> None:
    """Reads every byte of the segments of a run, and makes those again that are not as they were written.

    Raises:
        ValueError: One cannot be made again, or held-out text is not what it was when the checkpoints were made.
    """
    sources = {source.name: source for source in options.data.sources}
    heldout = _kept_heldout(folder)
    for name in sorted({*sources, *_opened(folder)}):
        train, other = (segment_folder(folder / "data", name, split) for split in SPLITS)
        has_other = name in sources or name in heldout or other.exists()
        faulty = [place for place in (train, other)[: 1 + has_other] if not _is_whole(place)]
        if faulty:
            source = sources.get(name) or _source_of(name, (train, other))
            _make_again(faulty, source, options, tokenizer, folder / "data")
    now = heldout_ids(folder, heldout)
    changed = sorted(name for name, identity in heldout.items() if now.get(name) != identity)
    if changed:
        raise ValueError(
            f"the held-out text of {', '.join(changed)} is not what it was when the run's newest checkpoint was made; "
            f"restore its source or {folder / 'data' / 'heldout'}"
        )


def _is_whole(place: Path) -> bool:
    try:
        verify(place)
    except (NotVerified, OSError) as error:
        _say(f"{error}")
        return False
    return True


def _opened(folder: Path) -> set[str]:
    """The sources that a run's ledger has opened; what may be wrong with the ledger is told where it is continued."""
    found: set[str] = set()
    with suppress(ValueError, OSError):
        for line in scan(folder / NAME).lines:
            if line.record["kind"] == "decision" and line.record["what"] == "open":
                place = Path(line.record["value"]["folder"])
                if place == segment_folder(Path("data"), place.name, SPLITS[0]):
                    found.add(place.name)
    return found


def _source_of(name: str, places: Iterable[Path]) -> SourceOptions | None:
    """The source that `mentor add` has brought, as one of its segments tells."""
    for place in places:
        with suppress(NotVerified, OSError, ValueError, KeyError):
            return SourceOptions(name=name, path=json.loads(verified_file(place, FACTS))["source"])
    return None


def _make_again(
    faulty: Iterable[Path], source: SourceOptions | None, options: Options, tokenizer: Aquila2Tokenizer, data: Path
) -> None:
    """Sets segments aside and makes them again; gives them their names back where that cannot be."""
    asides = {place: set_aside(place, FAULTY) for place in faulty if place.exists()}
    try:
        if source is None:
            raise ValueError("nothing tells any more what it was made from")
        prepare_source(source, options.data.heldout, tokenizer, data)
    except (ValueError, OSError) as error:
        for place, aside in asides.items():
            if not place.exists():
                aside.rename(place)
        names = " and ".join(map(str, faulty))
        raise ValueError(f"{names} must be made again and cannot be: {error}; restore it, or its source") from None
    for place in faulty:
        if place in asides:
            _say(f"{place} is set aside as {asides[place].name}")
        _say(f"{place} was made again from {source.path}")


def _kept_heldout(folder: Path) -> dict[str, str]:
    """The ids of the held-out segments, by their names, that the newest checkpoint keeps."""
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        with suppress(NotVerified, KeyError):
            kept: dict[str, str] = read_manifest(checkpoint)["facts"]["heldout"]
            return kept
    return {}


def heldout_ids(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The ids of a run's held-out segments by their names; one that cannot be read has none."""
    found = {}
    for name in sorted(names):
        with suppress(NotVerified):
            found[name] = Segment(segment_folder(folder / "data", name, "heldout")).id
    return found


def honour_stop(folder: Path) -> None:
    """Lets a run that has stopped by itself rest where torchrun starts it again; a person who starts it knows.

    Raises:
        ValueError: It has stopped by itself, and says why.
    """
    marker = folder / STOPPED
    if marker.is_file() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        raise ValueError(f"the run has stopped by itself and is not started again: {marker.read_text('utf-8').strip()}")
    marker.unlink(missing_ok=True)


def tokenizer_for(options: Options, folder: Path) -> Aquila2Tokenizer:
    """The run's tokenizer: already made, named in the options, or trained on an equal sample of every source."""
    if (folder / "tokenizer.json").is_file():
        try:
            return Aquila2Tokenizer.from_pretrained(folder)
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(
                f"{folder} holds no tokenizer ({error}); remove it where the run has no checkpoint"
            ) from None
    if options.tokenizer.path is not None:
        tokenizer = Aquila2Tokenizer.from_pretrained(options.tokenizer.path)
    else:
        share = options.tokenizer.sample_bytes // len(options.data.sources)
        texts: list[str] = []
        for source in options.data.sources:
            taken = 0
            for document in source_documents(source):
                if taken >= share:
                    break
                texts.append(document.text)
                taken += len(document.text.encode())
        tokenizer = Aquila2Tokenizer.train(texts, options.tokenizer.vocab_size)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
