"""Small models, tokenizers and texts that the tests of aquila2 share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aquila2 import Aquila2Config, Aquila2ForCausalLM, Aquila2Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.\n",
    "def add(left, right):\n    return left + right\n",
    "注意力机制把每个词与其他词联系起来。\n",
    "We train a small model on small text, and it learns it by heart.\n",
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture
def tiny_config() -> Aquila2Config:
    return Aquila2Config.named("tiny", vocab_size=304, bos_token_id=1, eos_token_id=2)


@pytest.fixture
def tiny_model(tiny_config: Aquila2Config) -> Aquila2ForCausalLM:
    return Aquila2ForCausalLM(tiny_config.replace(initializer_range=0.2)).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Aquila2Tokenizer:
    return Aquila2Tokenizer.train(SENTENCES * 4, 304)


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A folder with enough small documents for a tiny run."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i:02d}.txt").write_text("".join(SENTENCES[(i + j) % 4] for j in range(8)), encoding="utf-8")
    return folder
