"""A run with real segments that crashed, grew, changed its mixture and skipped; and what was fed in every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from aquila2.heurimentor.data.segment import write_segment
from aquila2.heurimentor.ledger.book import Book, row_digest
from aquila2.heurimentor.verified import verified_folder
from aquila2.training.sources import Document
from tests.aquila2.heurimentor.byte_tokenizer import ByteTokenizer

ROW_TOKENS = 96
POISON = "ZQ!9 xX 7#k ~~ Vw8 @@ lkjh QQ zz 0101 %% Jp3 ^^ mNb && tT5 ** qQ2 (( vV4 )) wW1 -- yY0 ++ zZ9 == aA8"


def write_documents(run: Path, name: str, texts: list[str]) -> Path:
    folder = run / "data" / name
    documents = [Document(f"{name}.jsonl:{i + 1}", text) for i, text in enumerate(texts)]
    write_segment(folder, documents, ByteTokenizer(), source=f"{name}.jsonl", tokenizer_id="bytes")
    return folder


def take(book: Book, count: int) -> None:
    from aquila2.heurimentor.ledger.audit import open_segments

    plan = book.plan(count)
    segments = open_segments(book.folder, book.lineage)
    digest = sum(
        row_digest(sample, segments[number].row(row, ROW_TOKENS).ids)
        for sample, number, row in zip(plan.samples.tolist(), plan.segments.tolist(), plan.rows.tolist(), strict=True)
    )
    book.commit(count, digest, {"loss": 1.0})


def save(book: Book) -> None:
    book.sync()
    with verified_folder(
        book.folder / "checkpoints" / f"step-{book.lineage.step}", {"ledger": book.head.facts()}
    ) as folder:
        (folder / "model.bin").write_bytes(b"weights")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    english = [
        f"The document number {i} says {'very ' * (i % 7)}little about the {i * 31 % 17} others. " for i in range(60)
    ]
    english[37] = POISON
    chinese = [f"第{i}篇文章讲的是{'很' * (i % 5)}普通的事情，没有什么特别的。" for i in range(50)]
    with Book.create(folder, seed=11, row_tokens=ROW_TOKENS) as book:
        book.open_segment("en", write_documents(folder, "english", english))
        book.open_segment("zh", write_documents(folder, "chinese", chinese))
        book.mix({"en": 2.0, "zh": 1.0})
        for _ in range(5):
            take(book, 6)
        save(book)
        head = book.head
        for _ in range(3):
            take(book, 6)
    with Book(folder, head) as book:
        book.set_ranks([2, 1])
        for _ in range(3):
            take(book, 6)
        book.open_segment(
            "zh", write_documents(folder, "later", [f"新的数据，第{i}号，后来才加进来的。" for i in range(30)])
        )
        book.mix({"en": 1.0, "zh": 1.0})
        book.decide("skip", {"samples": 7}, by="policy")
        for _ in range(12):
            take(book, 6)
        save(book)
    return folder
