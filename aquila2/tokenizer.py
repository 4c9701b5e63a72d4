"""Aquila2's byte-level BPE tokenizer on the `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from aquila2.atomic import atomic_write
from aquila2.config import read_json

END_OF_TEXT = "<|endoftext|>"  # id 0: padding and unknown
BOS, EOS = "[CLS]", "</s>"
AQUILA2_SPECIALS = ("<|startofpiece|>", "<|endofpiece|>", "<|LDWANG|>", "[MASK]", "[gMASK]", "[sMASK]", BOS, EOS)


class Aquila2Tokenizer:
    """Text to ids and back: GPT-2's byte alphabet, split pattern and merges, no prefix space, nothing unknown.

    The published layout is kept for trained vocabularies too: id 0 is `<|endoftext|>`, then come bytes and merges, and
    the eight special tokens of Aquila2 stand at the end.

    Args:
        backend: A `tokenizers.Tokenizer`, as the constructors below make it.
        bos, eos: Tokens that open and close a document.
    """

    def __init__(self, backend: Tokenizer, bos: str = BOS, eos: str = EOS) -> None:
        self.backend = backend
        self.bos_token, self.eos_token = bos, eos
        self.bos_token_id = self._id_of(bos)
        self.eos_token_id = self._id_of(eos)
        self.pad_token_id = self._id_of(END_OF_TEXT)

    def __len__(self) -> int:
        """Number of ids, special ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text.
            bos, eos: Put the opening or closing id around it.
            allow_special: Special tokens spelled out in the text become their ids, as in the published tokenizer.
                Turn it off for text from outside, which must not be able to end a document.
        """
        return self.encode_batch([text], bos=bos, eos=eos, allow_special=allow_special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, allow_special: bool = True
    ) -> list[list[int]]:
        """The ids of several texts, on all cores."""
        self.backend.encode_special_tokens = not allow_special
        head = [self.bos_token_id] if bos else []
        tail = [self.eos_token_id] if eos else []
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [head + encoding.ids + tail for encoding in encodings]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no complete UTF-8 character become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    @classmethod
    def train(
        cls, texts: Iterable[str] | Iterable[Path], vocab_size: int, *, min_frequency: int = 2, progress: bool = False
    ) -> Aquila2Tokenizer:
        """Learns merges from texts, or from the text files that paths name.

        Args:
            texts: Texts or paths of UTF-8 files.
            vocab_size: Number of ids wanted, the special ones included; at least 265.
            min_frequency: Pairs seen less often are not merged.
            progress: Show the trainer's progress bar.

        Raises:
            ValueError: `vocab_size` has no room for the bytes and the special tokens.
        """
        smallest = 256 + 1 + len(AQUILA2_SPECIALS)
        if vocab_size < smallest:
            raise ValueError(f"vocab_size must be at least {smallest}, got {vocab_size}")
        backend = Tokenizer(models.BPE())
        _set_byte_level(backend)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(AQUILA2_SPECIALS),
            min_frequency=min_frequency,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=progress,
        )
        backend.train_from_iterator(_texts_of(texts), trainer)
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in AQUILA2_SPECIALS])
        return cls(backend)

    @classmethod
    def from_files(
        cls,
        vocab: Path | str,
        merges: Path | str,
        specials: Sequence[str] = AQUILA2_SPECIALS,
        bos: str = BOS,
        eos: str = EOS,
    ) -> Aquila2Tokenizer:
        """A tokenizer from `vocab.json`, `merges.txt` and its special tokens.

        Special tokens that the vocabulary lacks take the next ids in the given order: 100000 to 100007 for the
        published vocabulary of 100000.
        """
        backend = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        _set_byte_level(backend)
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in (*specials, END_OF_TEXT)])
        return cls(backend, bos, eos)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> Aquila2Tokenizer:
        """A tokenizer from a folder with `tokenizer.json`, or with `vocab.json` and `merges.txt`.

        Special tokens come from `special_tokens.txt` (one per line) or `added_tokens.json`, else they are Aquila2's;
        `tokenizer_config.json` may name other opening and closing tokens.

        Raises:
            FileNotFoundError: The folder holds neither form.
        """
        folder = Path(path)
        bos, eos = _bos_and_eos(folder)
        if (folder / "tokenizer.json").is_file():
            return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), bos, eos)
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        if not (vocab.is_file() and merges.is_file()):
            raise FileNotFoundError(f"{folder} has no tokenizer.json and no pair of vocab.json and merges.txt")
        return cls.from_files(vocab, merges, _special_tokens(folder), bos, eos)

    def save_pretrained(self, path: Path | str) -> None:
        """Writes `tokenizer.json`, `vocab.json`, `merges.txt`, `added_tokens.json` and `tokenizer_config.json`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.encode_special_tokens = False
        serialised = self.backend.to_str(pretty=False)
        model = json.loads(serialised)["model"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        added = {token: self._id_of(token) for token in AQUILA2_SPECIALS if self.backend.token_to_id(token) is not None}
        settings = {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
        }
        atomic_write(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
        atomic_write(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs]) + "\n")
        atomic_write(folder / "added_tokens.json", json.dumps(added, indent=2) + "\n")
        atomic_write(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        atomic_write(folder / "tokenizer.json", serialised)

    def _id_of(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the vocabulary has no token {token!r}")
        return int(token_id)


def _set_byte_level(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()


def _texts_of(texts: Iterable[str] | Iterable[Path]) -> Iterator[str]:
    for text in texts:
        yield text.read_text(encoding="utf-8", errors="replace") if isinstance(text, Path) else text


def _special_tokens(folder: Path) -> Sequence[str]:
    if (folder / "special_tokens.txt").is_file():
        return [line for line in (folder / "special_tokens.txt").read_text(encoding="utf-8").splitlines() if line]
    if (folder / "added_tokens.json").is_file():
        added: dict[str, int] = read_json(folder / "added_tokens.json")
        return sorted(added, key=added.__getitem__)
    return AQUILA2_SPECIALS


def _bos_and_eos(folder: Path) -> tuple[str, str]:
    settings = folder / "tokenizer_config.json"
    entries = read_json(settings) if settings.is_file() else {}
    names = []
    for key, default in (("bos_token", BOS), ("eos_token", EOS)):
        token = entries.get(key) or default
        names.append(token["content"] if isinstance(token, dict) else token)
    return names[0], names[1]
