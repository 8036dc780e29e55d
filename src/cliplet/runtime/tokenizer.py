"""Sentences to token ids, without torch: a thin, strict hold on a `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from cliplet.errors import ModelError

ENCODED_AT_ONCE = 10_000  # an encoding takes kilobytes; of millions of captions they would fill the memory
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


class Tokenizer:
    """Sentences to (N, L) ids and mask, padded to the longest of the call, cut to `context_length`.

    What the file itself says of padding and truncation is overruled: the model's configuration knows better.
    A cut text keeps its closing special token. Safe to call from many threads.
    Raises ModelError for a `context_length` in which nothing but special tokens finds room.
    """

    def __init__(self, backend: tokenizers.Tokenizer, context_length: int):
        # A copy, for truncation is a setting of the object and the caller's stays as it was.
        self._keep(tokenizers.Tokenizer.from_str(backend.to_str()), context_length)

    def _keep(self, backend: tokenizers.Tokenizer, context_length: int) -> None:
        self._backend = backend
        self._backend.no_padding()
        special = self._backend.num_special_tokens_to_add(False)
        if context_length <= special:
            raise ModelError(
                f"a context length of {context_length} leaves no room beside {special} special tokens",
                "Raise model.text.context_length.",
            )
        self._backend.enable_truncation(context_length)
        self.context_length = context_length
        self.pad_id = _pad_id(self._backend)

    @classmethod
    def from_file(cls, file: str | Path, context_length: int) -> Tokenizer:
        """Opens a tokenizer.json. Raises ModelError where it is missing or not one."""
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for all of it
            raise ModelError(f"{file}: cannot be opened as a tokenizer: {error}") from None
        return cls._of(backend, context_length)

    @classmethod
    def from_json(cls, text: str, context_length: int) -> Tokenizer:
        """Opens the text of a tokenizer.json. Raises ModelError where it is not one."""
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception for all of it
            raise ModelError(f"cannot be opened as a tokenizer: {error}") from None
        return cls._of(backend, context_length)

    @classmethod
    def _of(cls, backend: tokenizers.Tokenizer, context_length: int) -> Tokenizer:
        """Of one that nobody else has: a copy of 30,000 entries takes longer than opening their file."""
        tokenizer = cls.__new__(cls)
        tokenizer._keep(backend, context_length)
        return tokenizer

    def to_json(self) -> str:
        """The text of a tokenizer.json."""
        return self._backend.to_str()

    def save(self, file: str | Path) -> None:
        """Writes tokenizer.json."""
        Path(file).write_text(json.dumps(json.loads(self._backend.to_str()), ensure_ascii=False), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Entries, added ones included; ids lie below it."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def ends_at(self, size: int) -> bool:
        """Whether `vocab_size` is `size`, asked of two ids instead of all; ids without a gap are taken for granted."""
        entry = self._backend.id_to_token
        return size > 0 and entry(size - 1) is not None and entry(size) is None

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask of `texts`, both (N, L) int64, L the longest text's length."""
        return self.padded(self.encode(texts)[0])

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """The token ids of each text, cut to `context_length`, and how many texts were longer than that."""
        ids: list[list[int]] = []
        cut = 0
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            # Half a surrogate pair, as JSON's escapes allow it in a query, is no character: it is read as "?".
            block = [text.encode("utf-8", "replace").decode() for text in texts[start : start + ENCODED_AT_ONCE]]
            for encoding in self._backend.encode_batch_fast(block):
                ids.append(encoding.ids)
                cut += bool(encoding.overflowing)
        return ids, cut

    def padded(self, encoded: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask, both (N, L) int64, of N texts' ids, L the longest one's length."""
        longest = max(1, max(map(len, encoded), default=1))
        ids = np.full((len(encoded), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(encoded), longest), dtype=np.int64)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : max(1, len(tokens))] = 1  # a text of no tokens attends to one padding, not to nothing
        return ids, mask


def _pad_id(backend: tokenizers.Tokenizer) -> int:
    """The id that fills short rows. Any would do, since the mask hides it; the tokenizer's own reads best."""
    return next((id_ for token in PAD_TOKENS if (id_ := backend.token_to_id(token)) is not None), 0)
