"""Batched text generation with a cache: rows of any length, no padding, stop strings, streaming, seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from aquila2.cache import KVCache
from aquila2.model import Aquila2ForCausalLM
from aquila2.sampling import Sampling, draw
from aquila2.tokenizer import Aquila2Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4  # bytes of a UTF-8 character, hence tokens that one character can spread over


@dataclass(frozen=True)
class Generation:
    """One row's result.

    Attributes:
        text: The generated text, without the prompt and up to the stop string.
        token_ids: All generated ids, an ending id included.
        finish_reason: "eos", "stop" or "length".
    """

    text: str
    token_ids: list[int]
    finish_reason: str


class DecodingBatch:
    """Rows that are decoded together, one token per step; rows finish one by one and then cost nothing.

    Args:
        model: The model.
        prompts: Ids of every row, each at least one.
        max_new_tokens: Room for new tokens in every row.
        sampling: How tokens are drawn.

    Raises:
        ValueError: A prompt is empty.
    """

    def __init__(
        self, model: Aquila2ForCausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling
    ) -> None:
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompts[{row}] must have at least one id, got none")
        weight = model.lm_head.weight
        self.model, self.sampling = model, sampling
        capacity = max((len(prompt) for prompt in prompts), default=0) + max_new_tokens
        self.cache = KVCache(model.config, len(prompts), capacity, weight.dtype, weight.device)
        self.pending = [list(prompt) for prompt in prompts]
        self.generators = sampling.generators(len(prompts), weight.device)

    @property
    def active(self) -> list[int]:
        """Rows that are not finished."""
        return [row for row, ids in enumerate(self.pending) if ids]

    def finish(self, row: int) -> None:
        """Takes a row out of the batch."""
        self.pending[row] = []

    @torch.no_grad()
    def step(self) -> dict[int, int]:
        """Feeds what is pending, first the prompts, then the last tokens; returns the next id of every active row."""
        rows, counts = self.active, [len(ids) for ids in self.pending]
        device = self.cache.keys.device
        packed = torch.tensor([[token for ids in self.pending for token in ids]], device=device)
        last = torch.tensor(counts, device=device).cumsum(0)[rows] - 1
        self.cache.begin(counts)
        logits = self.model(packed, cache=self.cache, logits_at=last).logits
        tokens = draw(logits, self.sampling, [self.generators[row] for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            self.pending[row] = [token]
        return dict(zip(rows, tokens, strict=True))


class TextAssembler:
    """Turns one row's ids into text piece by piece: whole characters, and nothing that may belong to a stop string."""

    def __init__(self, tokenizer: Aquila2Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [string for string in stop if string]
        self.stopped = False
        self._ids: list[int] = []
        self._held = ""

    def add(self, token: int) -> str:
        """Takes an id and returns the text that is certain now."""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) <= LONGEST_CHARACTER:
            return ""
        self._ids.clear()
        return self._release(text)

    def finish(self) -> str:
        """Returns what was held back."""
        if self.stopped:
            return ""
        rest = self._release(self.tokenizer.decode(self._ids)) + self._held
        self._ids, self._held = [], ""
        return rest

    def _release(self, text: str) -> str:
        self._held += text
        cuts = [at for at in (self._held.find(string) for string in self.stop) if at >= 0]
        if cuts:
            released, self._held, self.stopped = self._held[: min(cuts)], "", True
            return released
        kept = max((_overlap(self._held, string) for string in self.stop), default=0)
        released, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return released


def generate(
    model: Aquila2ForCausalLM,
    tokenizer: Aquila2Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Continues prompts, all rows at once.

    Every row is opened with the tokenizer's opening id, as in training, and ends with its closing id, a stop string or
    `max_new_tokens`. A row draws the same tokens whatever its neighbours are, up to the rounding of batched products,
    and exactly where the model is batch-invariant.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: Texts to continue.
        max_new_tokens: Most new tokens per row.
        sampling: Greedy if None.
        stop: Strings that end a row; they are not part of its text.
        on_text: Called with (row, piece of text) as soon as a piece is certain.

    Returns:
        One `Generation` per prompt.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    batch = DecodingBatch(
        model, [tokenizer.encode(prompt, bos=True) for prompt in prompts], max_new_tokens, sampling or Sampling()
    )
    assemblers = [TextAssembler(tokenizer, stop) for _ in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    texts = ["" for _ in prompts]
    reasons = ["length" for _ in prompts]

    def tell(row: int, piece: str) -> None:
        texts[row] += piece
        if piece and on_text is not None:
            on_text(row, piece)

    for _ in range(max_new_tokens):
        if not batch.active:
            break
        for row, token in batch.step().items():
            ids[row].append(token)
            if token == tokenizer.eos_token_id:
                reasons[row] = "eos"
            else:
                tell(row, assemblers[row].add(token))
                if assemblers[row].stopped:
                    reasons[row] = "stop"
            if reasons[row] != "length":
                batch.finish(row)
    for row, assembler in enumerate(assemblers):
        tell(row, assembler.finish())
        if assembler.stopped and reasons[row] == "length":
            reasons[row] = "stop"
    return [Generation(*result) for result in zip(texts, ids, reasons, strict=True)]


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
