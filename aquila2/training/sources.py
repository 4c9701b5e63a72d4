"""Documents from folders, text files, .jsonl and .parquet."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".js", ".ts", ".java", ".go", ".rs", ".sh", ".html", ".tex")  # fmt: skip  # noqa: E501
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
TEXT_COLUMNS = ("text", "content")
PIECE_CHARACTERS = 16_384
SURROGATE = re.compile("[\ud800-\udfff]")


class Document(NamedTuple):
    """A text and a name that is stable from run to run."""

    name: str
    text: str


def read_documents(path: Path | str) -> Iterator[Document]:
    """All documents of a file or folder, in the order of their names.

    A text file is one document, a line of .jsonl and a row of .parquet too; those two have the text in the field
    "text" or "content". Folders are searched to the bottom, hidden entries left out. What is no Unicode becomes U+FFFD
    in texts, bytes that are no UTF-8 and halves of surrogate pairs alike, and \\xNN in names.

    Raises:
        FileNotFoundError: The path is not there, or nothing in the folder can be read.
        ValueError: A file of another kind, or a record without text.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"{root} is not there")
    if root.is_file():
        yield from _clean(_read_file(root, root.name))
        return
    files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file() and not _hidden(p, root))
    if not files:
        raise FileNotFoundError(f"{root} has no file of the kinds {', '.join(SUFFIXES)}")
    for file in files:
        yield from _clean(_read_file(file, str(file.relative_to(root))))


def _clean(documents: Iterable[Document]) -> Iterator[Document]:
    for name, text in documents:
        yield Document(readable(name), SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text))


def readable(path: str) -> str:
    """A path as text: its bytes that are no UTF-8 are written \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def pieces(document: Document) -> list[Document]:
    """Cuts a long document at line ends into pieces of about 16k characters, so that one book is not one document."""
    name, text = document
    cuts = [0]
    while len(text) - cuts[-1] > 1.5 * PIECE_CHARACTERS:
        line_end = text.find("\n", cuts[-1] + PIECE_CHARACTERS)
        if line_end < 0 or line_end - cuts[-1] > 2 * PIECE_CHARACTERS:
            line_end = cuts[-1] + PIECE_CHARACTERS
        cuts.append(line_end + 1)
    bounds = zip(cuts, [*cuts[1:], len(text)], strict=True)
    return [Document(f"{name}#{i}", text[start:end]) for i, (start, end) in enumerate(bounds) if end > start]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _parse_json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON: {error.msg} at column {error.colno}") from None


def _read_file(file: Path, name: str) -> Iterator[Document]:
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{file}, line {number}"
                    yield Document(f"{name}:{number}", _text_of(_parse_json(line, place), place))
    elif file.suffix == ".parquet":
        yield from _read_parquet(file, name)
    elif file.suffix in TEXT_SUFFIXES:
        yield Document(name, file.read_text(encoding="utf-8", errors="replace"))
    else:
        raise ValueError(f"{file} must be one of the kinds {', '.join(SUFFIXES)}")


def _read_parquet(file: Path, name: str) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    columns = [column for column in TEXT_COLUMNS if column in opened.schema_arrow.names]
    if not columns:
        raise ValueError(f"{file} must have a column {' or '.join(TEXT_COLUMNS)}, got {opened.schema_arrow.names}")
    row = 0
    for batch in opened.iter_batches(columns=columns[:1]):
        column = batch.column(0)
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())  # whose bytes need not be UTF-8
        for text in column.to_pylist():
            row += 1
            if text:
                yield Document(
                    f"{name}:{row}", text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
                )


def _text_of(record: object, where: str) -> str:
    if isinstance(record, dict):
        for key in TEXT_COLUMNS:
            if isinstance(record.get(key), str):
                return str(record[key])
    raise ValueError(f"{where} must be an object with a string {' or '.join(TEXT_COLUMNS)}")
