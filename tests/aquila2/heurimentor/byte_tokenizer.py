"""A tokenizer of bytes, so that tests can read tokens: 1 opens, 2 closes, byte b is b + 3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class ByteTokenizer:
    """Encodes and decodes like Aquila2Tokenizer, one token per byte."""

    def __init__(self, size: int = 259) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, allow_special: bool = True
    ) -> list[list[int]]:
        return [[1] * bos + [byte + 3 for byte in text.encode()] + [2] * eos for text in texts]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return bytes(token - 3 for token in ids if token > 2).decode(errors="replace")
