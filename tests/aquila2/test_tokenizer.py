"""Ids equal the GPT-2 tokenizer's of transformers; text survives; the published layout is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aquila2 import Aquila2Tokenizer
from aquila2.tokenizer import AQUILA2_SPECIALS

TEXTS = [
    "",
    " ",
    "  two  spaces and\ttabs\n\n\nlines  ",
    "it's we'll I'VE 1234567 3.14",
    "你好，世界！混合 mixed 文本 текст",
    "emoji 👩‍👩‍👧‍👦 and \u200b zero width",
    "\x00\x7f control",
    "<|startofpiece|>question<|endofpiece|>answer</s>",
    "[CLS]a[MASK]b",
    "</s",
    "def add(left, right):\n    return left + right\n",
]


@pytest.fixture(scope="module")
def gpt2(tokenizer: Aquila2Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> object:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    reference = transformers.GPT2TokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), add_prefix_space=False
    )
    # The published tokenizer lists its special tokens the same way: in order, after the vocabulary.
    reference.add_tokens([transformers.AddedToken(t, normalized=False, special=True) for t in AQUILA2_SPECIALS])
    return reference


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_gpt2(tokenizer: Aquila2Tokenizer, gpt2: object, text: str) -> None:
    assert tokenizer.encode(text) == gpt2(text)["input_ids"]


@given(text=st.text(max_size=80))
def test_ids_equal_gpt2_on_any_text(tokenizer: Aquila2Tokenizer, gpt2: object, text: str) -> None:
    assert tokenizer.encode(text) == gpt2(text)["input_ids"]


@given(text=st.text(max_size=80))
def test_any_text_survives(tokenizer: Aquila2Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, allow_special=False), skip_special=False) == text


def test_layout(tokenizer: Aquila2Tokenizer) -> None:
    assert tokenizer.pad_token_id == 0
    count = len(tokenizer)
    assert [tokenizer.encode(token) for token in AQUILA2_SPECIALS] == [[i] for i in range(count - 8, count)]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (count - 2, count - 1)
    assert tokenizer.encode("a", bos=True, eos=True) == [count - 2, *tokenizer.encode("a"), count - 1]


def test_published_vocabulary_gives_the_published_special_ids(tmp_path: Path) -> None:
    alphabet = sorted(Aquila2Tokenizer.train(["a"], 265).backend.get_vocab(False).items(), key=lambda entry: entry[1])
    vocabulary = {token: i for i, (token, _) in enumerate(alphabet[:257])}
    vocabulary.update({f"filler{i}": i for i in range(len(vocabulary), 100000)})
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Aquila2Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<|startofpiece|><|endofpiece|><|LDWANG|>[MASK][gMASK][sMASK][CLS]</s>") == list(
        range(100000, 100008)
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (100006, 100007, 0)


def test_spelled_out_specials_can_be_refused(tokenizer: Aquila2Tokenizer) -> None:
    ids = tokenizer.encode("a</s>b", allow_special=False)
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a</s>b"
    assert tokenizer.eos_token_id in tokenizer.encode("a</s>b")


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab and merges", "special_tokens.txt"])
def test_forms_on_disk(tokenizer: Aquila2Tokenizer, tmp_path: Path, form: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    if form != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    if form == "special_tokens.txt":
        (tmp_path / "added_tokens.json").unlink()
        (tmp_path / "special_tokens.txt").write_text("\n".join(AQUILA2_SPECIALS) + "\n")
    loaded = Aquila2Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)


def test_files_and_texts_train_the_same(tmp_path: Path) -> None:
    text = "\n".join(TEXTS[2:6])
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    from_text = Aquila2Tokenizer.train([text], 290, min_frequency=1)
    from_file = Aquila2Tokenizer.train([tmp_path / "text.txt"], 290, min_frequency=1)
    assert from_text.backend.get_vocab() == from_file.backend.get_vocab()
    assert len(from_text) == 290


def test_too_small_and_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 265, got 100"):
        Aquila2Tokenizer.train(["a"], 100)
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json and no pair"):
        Aquila2Tokenizer.from_pretrained(tmp_path)
