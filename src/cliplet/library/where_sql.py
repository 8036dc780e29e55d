"""Filters in the words of SQLite and of LanceDB, and the patterns of text that mean the same in both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

WIDE = 32  # terms in a row: SQLite reads a chain of conditions as a tree as deep as it is long, and limits the depth
SINE_TERMS = 8  # of the series: right to 1e-11, which is less than a millimetre on the earth
GLOB_SIGNS, REGEX_SIGNS = frozenset("*?["), frozenset("\\.+*?()|[]{}^$")
IN_LINE, NEWLINE = "[^\n]", "\n"  # one character of an entry, for both; what stands around entries
SEPARATOR = "\ufdd0"  # between entries, while they are made JSON: Unicode keeps it free of characters


class Wild(Enum):
    """What stands for other characters."""

    ONE = "_"
    ANY = "%"


@dataclass(frozen=True)
class Pattern:
    """A text to compare with: for each character those that pass for it, such as "kK", or a Wild."""

    parts: tuple[str | Wild, ...]

    @classmethod
    def exactly(cls, text: str) -> Pattern:
        """The text itself."""
        return cls(tuple(map(both_cases, text)))

    @classmethod
    def like(cls, text: str) -> Pattern:
        """The text with % and _ in it."""
        parts: list[str | Wild] = []
        for character in text:
            part = Wild(character) if character in "_%" else both_cases(character)
            if part is not Wild.ANY or parts[-1:] != [Wild.ANY]:
                parts.append(part)
        return cls(tuple(parts))

    @property
    def runs(self) -> list[list[str | Wild]]:
        """The parts before, between and after every Wild.ANY."""
        runs: list[list[str | Wild]] = [[]]
        for part in self.parts:
            if part is Wild.ANY:
                runs.append([])
            else:
                runs[-1].append(part)
        return runs

    def ascii_text(self) -> str | None:
        """The text, where it is one and of ASCII alone."""
        letters = [part[0] for part in self.parts if isinstance(part, str)]
        return "".join(letters) if len(letters) == len(self.parts) and "".join(letters).isascii() else None

    def fits(self, text: str) -> bool:
        """Whether the whole text does. The time it takes grows with the lengths, not with their powers."""
        first, *others = self.runs
        if not others:
            return len(text) == len(first) and _stands_at(first, text, 0)
        *others, last = others
        place, end = len(first), len(text) - len(last)
        if place > end or not _stands_at(first, text, 0):
            return False
        for run in others:  # the first place that fits leaves the most for what follows
            found = next((at for at in range(place, end - len(run) + 1) if _stands_at(run, text, at)), None)
            if found is None:
                return False
            place = found + len(run)
        return _stands_at(last, text, end)

    def glob(self, one: str = "?") -> str:
        """For SQLite's GLOB, which knows neither capitals nor characters that escape others."""
        return "".join(_glob_part(part, one) for part in self.parts)

    def regex(self, one: str = "(?s:.)") -> str:
        """For Rust's regular expressions."""
        return "".join(_regex_part(part, one) for part in self.parts)


def both_cases(character: str) -> str:
    """The character, its small letter and its capital, where they are one character each; ASCII's keep to ASCII."""
    lower, upper = character.lower(), character.upper()
    forms = dict.fromkeys((character, lower, upper, upper.lower(), lower.upper()))
    return "".join(form for form in forms if len(form) == 1 and form.isascii() == character.isascii())


def _stands_at(run: list[str | Wild], text: str, place: int) -> bool:
    return all(isinstance(part, Wild) or text[place + i] in part for i, part in enumerate(run))


def _glob_part(part: str | Wild, one: str) -> str:
    if isinstance(part, Wild):
        return "*" if part is Wild.ANY else one
    return f"[{part}]" if len(part) > 1 or part in GLOB_SIGNS else part


def _regex_part(part: str | Wild, one: str) -> str:
    if isinstance(part, Wild):
        return f"{one}*" if part is Wild.ANY else one
    if len(part) > 1:
        return f"[{part}]"
    return f"\\{part}" if part in REGEX_SIGNS else part


class Dialect(Protocol):
    """How a database says what filters are made of. Numbers, and names that are cliplet's own, stand as they are."""

    def name(self, column: str) -> str:
        """A column's; "" for ""."""

    def value(self, value: int | float | str) -> str:
        """A number or a text of the person's."""

    def sine(self, degrees: str) -> str:
        """Of an angle from -90 to 90 degrees."""

    def text_fits(self, name: str, patterns: tuple[Pattern, ...]) -> str:
        """Whether a column's text fits any of the patterns. Null is unknown."""

    def entry_fits(self, name: str, patterns: tuple[Pattern, ...]) -> str:
        """Whether an entry of a list fits any of the patterns. Null is unknown."""


class Sqlite:
    """SQLite, whose LIKE and lower() know the capitals of ASCII alone, and which may be built without sines."""

    def __init__(self) -> None:
        self.values: list[Any] = []  # of the question marks

    def name(self, column: str) -> str:
        # Names of files that are not UTF-8 are stored as bytes, which GLOB may pass over.
        return f"CAST({column} AS TEXT)" if column in ("path", "name", "folder") else column

    def value(self, value: int | float | str) -> str:
        self.values.append(value)
        return "?"

    def sine(self, degrees: str) -> str:
        # Without parentheses within each other, of which SQLite's parser does not read many.
        factors = (
            (-1) ** term * math.radians(1) ** (2 * term + 1) / math.factorial(2 * term + 1)
            for term in range(SINE_TERMS)
        )
        series = " + ".join(" * ".join([repr(factor)] + ["x"] * (2 * term + 1)) for term, factor in enumerate(factors))
        return f"(SELECT {series} FROM (SELECT {degrees} AS x))"

    def text_fits(self, name: str, patterns: tuple[Pattern, ...]) -> str:
        texts = [text for text in (pattern.ascii_text() for pattern in patterns) if text is not None]
        # 1,000 names in a list are looked up a hundred times as fast as they are compared one after the other.
        looked_up = [f"{name} COLLATE NOCASE IN ({', '.join(map(self.value, texts))})"] if texts else []
        others = [pattern for pattern in patterns if pattern.ascii_text() is None]
        return joined("OR", looked_up + [f"{name} GLOB {self.value(pattern.glob())}" for pattern in others])

    def entry_fits(self, name: str, patterns: tuple[Pattern, ...]) -> str:
        return joined("OR", [self._entry_fits(name, pattern) for pattern in patterns])

    def _entry_fits(self, name: str, pattern: Pattern) -> str:
        inside = pattern.glob(IN_LINE)
        fits = f"{name} GLOB {self.value('*' + NEWLINE + inside + NEWLINE + '*')}"
        if sum(map(bool, pattern.runs)) < 2:
            return fits
        # The star between two runs may have crossed a newline: each entry has to be looked at.
        array = f"""'[' || replace(json_quote(replace({name}, char(10), '{SEPARATOR}')), '{SEPARATOR}', '","') || ']'"""
        return f"({fits} AND EXISTS (SELECT 1 FROM json_each({array}) WHERE value GLOB {self.value(inside)}))"


class Lance:
    """LanceDB, which asks DataFusion."""

    def name(self, column: str) -> str:
        return column

    def value(self, value: int | float | str) -> str:
        return _quoted(value) if isinstance(value, str) else repr(value)

    def sine(self, degrees: str) -> str:
        return f"sin(radians({degrees}))"

    def text_fits(self, name: str, patterns: tuple[Pattern, ...]) -> str:
        whole = r"\A(?:" + "|".join(pattern.regex() for pattern in patterns) + r")\z"
        return f"regexp_like({name}, {_quoted(whole)})"

    def entry_fits(self, name: str, patterns: tuple[Pattern, ...]) -> str:
        entry = f"\n(?:{'|'.join(pattern.regex(IN_LINE) for pattern in patterns)})\n"
        return f"regexp_like({name}, {_quoted(entry)})"


def _quoted(text: str) -> str:
    """A text as DataFusion reads it; a backslash is nothing special there."""
    return "'" + text.replace("'", "''") + "'"


def joined(word: str, conditions: list[str]) -> str:
    """Conditions with AND or OR between them; those with OR in parentheses."""
    if len(conditions) > WIDE:
        groups = (conditions[start : start + WIDE] for start in range(0, len(conditions), WIDE))
        return joined(word, [f"({f' {word} '.join(group)})" for group in groups])
    text = f" {word} ".join(conditions)
    return f"({text})" if word == "OR" and len(conditions) > 1 else text
