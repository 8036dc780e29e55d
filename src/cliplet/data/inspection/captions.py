"""What captions are like: their lengths, those that stand under many pictures, their scripts. One pass over them."""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from functools import lru_cache

import numpy as np

from cliplet.data.inspection.findings import CaptionFindings, Lengths, Repeated, Tokens
from cliplet.data.records import ImageText, Records
from cliplet.errors import ModelError
from cliplet.runtime.tokenizer import Tokenizer

MOST_REPEATED = 20  # captions listed
MANY = 3  # different pictures from which on a caption is listed
EXAMPLES = 5  # captions of each script
ENCODED_AT_ONCE = 10_000  # captions
NO_CUT = 1_000_000  # tokens: more than any caption has
NO_LETTERS = "no letters"
SCRIPTS = {"Cjk": "Han", "Hiragana": "Kana", "Katakana": "Kana", "Katakana-Hiragana": "Kana"}
SCRIPTS |= {"Fullwidth": "Latin", "Halfwidth": "Kana"}


class TokenCounter:
    """Captions in tokens of one tokenizer."""

    def __init__(self, tokenizer_json: str, name: str, context_length: int):
        """`name` is what people know the tokenizer by. Raises ModelError for what is no tokenizer, or a context in
        which nothing but special tokens finds room."""
        Tokenizer.from_json(tokenizer_json, context_length)
        self.name, self.context_length = name, context_length
        self._tokenizer = Tokenizer.from_json(tokenizer_json, NO_CUT)
        self._counts: Counter[int] = Counter()

    def count(self, captions: list[str]) -> None:
        """Counts some."""
        try:
            ids, _ = self._tokenizer.encode(captions)
        except Exception as error:  # tokenizers raises plain Exception, a word it does not know among them
            raise ModelError(f"{self.name}: cannot encode these captions: {error}") from None
        self._counts.update(map(len, ids))

    def found(self) -> Tokens:
        """What was counted so far."""
        return Tokens(self.name, self.context_length, Lengths(dict(sorted(self._counts.items()))))


class CaptionCounter:
    """Looks at the captions of each record in turn; numbers alone are kept."""

    def __init__(self, tokens: TokenCounter | None):
        self._tokens = tokens
        self._per_picture: Counter[int] = Counter()
        self._words: Counter[int] = Counter()
        self._scripts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._hashes = array("q")  # of every caption, record by record
        self._twice = array("q")
        self._waiting: list[str] = []
        self._records = 0

    def add(self, record: ImageText) -> None:
        """The next record."""
        hashes = [hash(plain(caption)) for caption in record.captions]
        self._hashes.extend(hashes)
        if len(set(hashes)) < len(hashes):
            self._twice.append(self._records)
        self._records += 1
        self._per_picture[len(hashes)] += 1
        for caption in record.captions:
            self._words[len(caption.split())] += 1
            script = script_of(caption)
            self._scripts[script] += 1
            if self._scripts[script] <= EXAMPLES:
                self._examples.setdefault(script, []).append(caption)
        if self._tokens:
            self._waiting += record.captions
            if len(self._waiting) >= ENCODED_AT_ONCE:
                self._encode()

    def _encode(self) -> None:
        if self._tokens:
            self._tokens.count(self._waiting)
            self._waiting = []

    def found(self, records: Records, file_of: np.ndarray) -> CaptionFindings:
        """What they are like. `file_of` (N,) numbers the file of each of the records that were added."""
        self._encode()
        repeated, most = _repeated(np.asarray(self._hashes, dtype=np.int64), records, file_of)
        scripts = dict(self._scripts.most_common())
        return CaptionFindings(
            per_picture=Lengths(dict(sorted(self._per_picture.items()))),
            words=Lengths(dict(sorted(self._words.items()))),
            tokens=self._tokens.found() if self._tokens else None,
            repeated=repeated,
            most_repeated=most,
            twice=np.asarray(self._twice, dtype=np.int64),
            scripts=scripts,
            examples={script: tuple(self._examples[script]) for script in scripts},
        )


def plain(caption: str) -> str:
    """The caption as it is compared: "Image." is "image"."""
    return caption.casefold().rstrip(" .")


def _repeated(hashes: np.ndarray, records: Records, file_of: np.ndarray) -> tuple[int, tuple[Repeated, ...]]:
    """How many captions stand under more than one file, and those that stand under most."""
    ends = np.cumsum(records.caption_counts())
    files = np.repeat(file_of, records.caption_counts())
    if not len(hashes):
        return 0, ()
    order = np.lexsort((files, hashes))
    hashes, files = hashes[order], files[order]
    new_hash = np.append(True, hashes[1:] != hashes[:-1])
    new_file = new_hash | np.append(True, files[1:] != files[:-1])
    starts = np.flatnonzero(new_hash)
    pictures = np.add.reduceat(new_file, starts, dtype=np.int64)
    most = np.lexsort((order[starts], -pictures))[:MOST_REPEATED]
    listed = []
    for group in most[pictures[most] >= MANY]:
        caption = int(order[starts[group]])
        row = int(np.searchsorted(ends, caption, side="right"))
        text = records[row].captions[caption - (int(ends[row]) - len(records[row].captions))]
        listed.append(Repeated(text, int(pictures[group])))
    return int((pictures > 1).sum()), tuple(listed)


def script_of(caption: str) -> str:
    """The script of most of its letters."""
    if caption.isascii():
        return "Latin" if any(map(str.isalpha, caption)) else NO_LETTERS
    counts = Counter(map(_script, filter(str.isalpha, caption)))
    return counts.most_common(1)[0][0] if counts else NO_LETTERS


@lru_cache(maxsize=100_000)
def _script(letter: str) -> str:
    """As the letter's name begins: LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-72AC."""
    word = unicodedata.name(letter, "unknown").partition(" ")[0].partition("-")[0].title()
    return SCRIPTS.get(word, word)
