"""What is searched for: a sentence, a picture, or sums and differences of them.

a dog in the snow               one sentence, in quotes or not
beach.jpg                       a picture, where there is such a file
beach + x.jpg - people          signs stand alone, between spaces
"beach" + x.jpg - 0.5 "people"  the same in one text, with a weight
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cliplet.data.endings import ENDINGS, HEIC_ENDINGS
from cliplet.errors import ConfigError

MAX_TERMS, MAX_WEIGHT, MAX_TEXT = 16, 100.0, 2000
WORDS = re.compile(r'"(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+)')
WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\*?$")

Kind = Literal["text", "picture", "id"]


@dataclass(frozen=True)
class Term:
    """A part of a query. `value`: a sentence; a picture as `Encoder.encode_image` takes one; the number of a picture
    of the library."""

    weight: float
    kind: Kind
    value: Any

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or abs(self.weight) > MAX_WEIGHT:
            raise ConfigError(f"a term's weight is between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}, got {self.weight}")
        if self.kind == "text" and not str(self.value).strip():
            raise ConfigError("a term of the query is empty", "Say what is searched for.")
        if self.kind == "text" and len(self.value) > MAX_TEXT:
            raise ConfigError(f"a sentence has at most {MAX_TEXT:,} characters, got {len(self.value):,}")


@dataclass(frozen=True)
class Query:
    """Terms that are added up by their weights. Each kind counts by how far its cosines spread, so that a sentence and
    a picture weigh alike."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not any(term.weight for term in self.terms):
            raise ConfigError("the query is empty", "Say what is searched for.")
        if len(self.terms) > MAX_TERMS:
            raise ConfigError(f"a query has at most {MAX_TERMS} terms, got {len(self.terms)}")

    @classmethod
    def of_text(cls, text: str) -> Query:
        """One sentence, whatever it looks like."""
        return cls((Term(1.0, "text", text),))

    @classmethod
    def of_picture(cls, picture: Any) -> Query:
        """One picture: a path, encoded bytes, an array or a Pillow image."""
        return cls((Term(1.0, "picture", picture),))

    @classmethod
    def parse(cls, words: str | Sequence[str]) -> Query:
        """From the words of a command line; see the head of this file. A single word with double quotes in it is split
        at its spaces. A term is a picture where it has such an ending; the file has to be there.

        Raises ConfigError.
        """
        words = [words] if isinstance(words, str) else list(words)
        if len(words) == 1 and '"' in words[0]:
            if words[0].count('"') % 2:
                raise ConfigError(f"a double quote is not closed in {words[0]}")
            tokens = [
                (one["quoted"] is not None, one["quoted"] or one["plain"] or "") for one in WORDS.finditer(words[0])
            ]
        else:
            tokens = [(len(words) == 1 or " " in word, word) for word in words]
        terms: list[Term] = []
        sign, weight, text = 1.0, 1.0, list[str]()

        def end() -> None:
            nonlocal weight, text
            if not text:
                raise ConfigError("a term is missing beside a sign", 'As in: beach + x.jpg - "many people".')
            terms.append(_term(sign * weight, " ".join(text)))
            weight, text = 1.0, []

        for place, (quoted, token) in enumerate(tokens):
            if not quoted and token in ("+", "-"):
                if place:
                    end()
                sign = 1.0 if token == "+" else -1.0
            elif (
                not quoted
                and not text
                and place + 1 < len(tokens)
                and (found := WEIGHT.match(token))
                and _signed(tokens)
            ):
                weight = float(found[1])
            else:
                text.append(token)
        end()
        return cls(tuple(terms))


def _signed(tokens: Sequence[tuple[bool, str]]) -> bool:
    """Whether there is a sign: without one, a number at the start belongs to the sentence ("2 dogs")."""
    return any(not quoted and token in ("+", "-") for quoted, token in tokens)


def _term(weight: float, text: str) -> Term:
    path = os.path.expanduser(text)
    if text.lower().endswith((*ENDINGS, *HEIC_ENDINGS)):
        if not os.path.isfile(path):
            raise ConfigError(f"{text}: there is no such picture", "Put a sentence that ends like a file differently.")
        return Term(weight, "picture", path)
    return Term(weight, "text", text)
