"""Real text that a machine has anyway: Python's library, this project's documents, Chinese message catalogues."""

from __future__ import annotations

import gettext
import importlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from aquila2.training.sources import Document

CATALOGUE_FOLDERS = ("/usr/share/locale/zh_CN/LC_MESSAGES", "/usr/local/share/locale/zh_CN/LC_MESSAGES")
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
MESSAGES_PER_DOCUMENT = 40
HAN = re.compile("[\u4e00-\u9fff]")


def builtin_documents(name: str) -> Iterator[Document]:
    """The documents of a source named `builtin:NAME`.

    Raises:
        ValueError: The name is not known.
    """
    if name not in BUILTIN_SOURCES:
        raise ValueError(f"builtin source must be one of {', '.join(BUILTIN_SOURCES)}, got {name!r}")
    return BUILTIN_SOURCES[name]()


def python_code() -> Iterator[Document]:
    """The source files of the running interpreter's standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if not SKIPPED_FOLDERS & set(relative.parts):
            yield Document(str(relative), file.read_text(encoding="utf-8", errors="replace"))


def english_documents() -> Iterator[Document]:
    """The language reference that Python carries for help(), and the English documents of this checkout."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    for name in sorted(topics):
        yield Document(f"pydoc/{name}", topics[name])
    yield from (document for document in checkout_documents() if not _is_chinese(document))


def chinese_documents() -> Iterator[Document]:
    """The Chinese documents of this checkout, and the Chinese messages of the programs installed on the machine."""
    yield from (document for document in checkout_documents() if _is_chinese(document))
    files = [file for folder in CATALOGUE_FOLDERS for file in sorted(Path(folder).glob("*.mo"))]
    for file in {file.name: file for file in reversed(files)}.values():  # the first of each name
        yield from _messages(file)


def checkout_documents() -> Iterator[Document]:
    """The Markdown files of the checkout that this package runs from, else of the current folder."""
    checkout = Path(__file__).resolve().parents[2]
    root = checkout if (checkout / "README.md").is_file() else Path.cwd()
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    for file in sorted(found):
        yield Document(str(file.relative_to(root)), file.read_text(encoding="utf-8", errors="replace"))


def _messages(file: Path) -> Iterator[Document]:
    try:
        with file.open("rb") as opened:
            catalogue = gettext.GNUTranslations(opened)
    except (OSError, UnicodeDecodeError, ValueError):
        return
    # The standard library reads catalogues but offers no way to list them.
    entries = vars(catalogue)["_catalog"]
    texts = [text for text in entries.values() if isinstance(text, str) and len(HAN.findall(text)) >= 4]
    for start in range(0, len(texts), MESSAGES_PER_DOCUMENT):
        yield Document(f"{file.name}:{start}", "\n".join(texts[start : start + MESSAGES_PER_DOCUMENT]))


def _is_chinese(document: Document) -> bool:
    return len(HAN.findall(document.text)) > 0.1 * len(document.text)


BUILTIN_SOURCES: dict[str, Callable[[], Iterator[Document]]] = {
    "python-code": python_code,
    "english": english_documents,
    "chinese": chinese_documents,
}
