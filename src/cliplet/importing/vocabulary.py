"""Vocabularies: the words of system 5, which its checkpoints do not hold, and whose tokenizer is whose."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cliplet.data.readers import read_source
from cliplet.errors import DataError, ModelError
from cliplet.models.tokenizers import SPECIAL
from cliplet.runtime.tokenizer import Tokenizer


def check_belonging(tokenizer: Tokenizer, rows: int) -> None:
    """Raises ModelError where a tokenizer cannot be that of an embedding of `rows`; a padded embedding is usual.

    transformers makes an empty tokenizer, without a word, where a folder has none.
    """
    if not rows / 2 <= tokenizer.vocab_size <= rows:
        raise ModelError(
            f"the tokenizer knows {tokenizer.vocab_size:,} tokens and the text tower {rows:,}: "
            "they do not belong together",
            "Name the tokenizer that the model was trained with: --tokenizer FOLDER_OR_FILE.",
        )


def words_of(captions: str | Path, rows: int) -> list[str]:
    """The words between spaces, in lower case, of captions that fill an embedding of `rows` with the special ones.

    All of them if that is their number; else those that occur at least n times, where some n gives the number.
    `captions`: a JSON list of {"image", "caption"}, or any data set. Raises ModelError where no n does.
    """
    counts = Counter(word for caption in _captions(Path(captions)) for word in caption.lower().split())
    for word in SPECIAL:  # which a caption may hold
        counts.pop(word, None)
    for least in range(1, max(counts.values(), default=0) + 1):
        words = [word for word, count in counts.items() if count >= least]
        if len(words) + len(SPECIAL) == rows:
            return words
        if len(words) + len(SPECIAL) < rows:
            break
    raise ModelError(
        f"{captions}: has {len(counts):,} different words, with the {len(SPECIAL)} special ones "
        f"{len(counts) + len(SPECIAL):,}, but the checkpoint's vocabulary has {rows:,} entries",
        "Name the very captions that the model was trained on.",
    )


def _captions(file: Path) -> Iterator[str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON: {error}") from None
    if isinstance(content, list):
        for number, entry in enumerate(content):
            if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
                raise DataError(f"{file}: entry {number} has no caption", 'Expected: {"image": ..., "caption": ...}')
            yield entry["caption"]
        return
    for record in read_source(str(file)).records:
        yield from record.captions
