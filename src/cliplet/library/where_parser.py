"""Filters from tokens to the tree of `where.py`, which also says how the language goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

from cliplet.errors import ConfigError, nearest
from cliplet.library.where import COLUMNS, Compare, Like, Near, Node, Not, Null, OneOf, Several
from cliplet.library.where_sql import Pattern
from cliplet.library.where_tokens import EXAMPLE, SHOWN, Token, fail, shown, tokens_of

MAX_NESTING = 10  # parentheses and `not` within each other; the parsers of SQLite and LanceDB end at 13
MAX_ENTRIES = 1000  # of a list
MAX_PLACES = 16  # near() in one filter
LARGEST = 2**53  # up to which whole numbers are exact everywhere
ALIASES = {"caption": "captions", "tag": "tags"}
DATES = ("taken", "added")
SIGNS = {"=": "=", "==": "=", "!=": "=", "<>": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
UNEQUAL = ("!=", "<>")
# As much of "2024-07-01T12:30:05" as is meant.
DATE = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([T ][0-9]{2}(:[0-9]{2}(:[0-9]{2})?)?)?)?)?")
BEGIN_OF_DATES = "0001-01-01T00:00:00"  # completes a date that is not written in full
FORMATS = {"jpg": "jpeg", "tif": "tiff"}  # names that files have, and those of the formats
AFTER_DATES = "~"  # comes after every character of a date: what begins with a date comes before the date with this

Value = TypeVar("Value")


class Parser:
    """Reads one filter, by a function for each rule of the language."""

    def __init__(self, text: str):
        """Raises ConfigError, as `tree` does."""
        self.tokens = tokens_of(text)
        self.next = 0
        self.depth = 0
        self.places = 0

    def tree(self) -> Node:
        """The whole of it."""
        if self.token.kind == "end":
            raise ConfigError("the filter is empty", EXAMPLE)
        node = self._some_of()
        if self.token.kind != "end":
            fail(self.token, f"expected `and`, `or` or the end, found {shown(self.token)}", EXAMPLE)
        return node

    @property
    def token(self) -> Token:
        return self.tokens[self.next]

    def _advance(self) -> Token:
        token = self.token
        self.next += token.kind != "end"
        return token

    def _take(self, *keywords: str) -> Token | None:
        """The next token if it is one of these, and then it is passed."""
        return self._advance() if self.token.keyword() in keywords else None

    def _expect(self, keyword: str, after: str) -> None:
        if not self._take(keyword):
            fail(self.token, f"expected `{keyword}` {after}, found {shown(self.token)}")

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > MAX_NESTING:
            fail(self.token, f"more than {MAX_NESTING} parentheses and `not` within each other")
        yield
        self.depth -= 1

    def _some_of(self) -> Node:
        return self._several("or", self._all_of)

    def _all_of(self) -> Node:
        return self._several("and", self._condition)

    def _several(self, word: str, read: Callable[[], Node]) -> Node:
        terms = [read()]
        while self._take(word):
            terms.append(read())
        return terms[0] if len(terms) == 1 else Several(tuple(terms), every=word == "and")

    def _condition(self) -> Node:
        if self._take("not"):
            with self._deeper():
                return Not(self._condition())
        if opening := self._take("("):
            with self._deeper():
                node = self._some_of()
            self._expect(")", f"for the parenthesis at character {opening.place}")
            return node
        if near := self._take("near"):
            return self._near(near)
        return self._comparison(self._column())

    def _column(self) -> str:
        token = self._advance()
        if token.kind != "word" or token.keyword():
            fail(token, f"expected a column, with which a comparison begins, found {shown(token)}", EXAMPLE)
        return _column_named(token)

    def _comparison(self, column: str) -> Node:
        sign = self.token
        if self._take(*SIGNS):
            node = self._compared(column, sign)
            return Not(node) if sign.written in UNEQUAL else node
        if self._take("is"):
            opposite = self._take("not")
            self._expect("null", "after `is`")
            return Not(Null(column)) if opposite else Null(column)
        opposite = self._take("not")
        found = self.token
        if self._take("in"):
            node = _equal(column, self._in_parentheses(lambda: self._value(column)))
        elif self._take("like"):
            node = self._like(column, found)
        elif self._take("between"):
            self._refuse_order_of_list(column, found)
            low = self._value(column)
            self._expect("and", "between the two values of `between`")
            high = self._value(column)
            if not isinstance(low, str) and not isinstance(high, str) and low > high:
                fail(found, f"nothing is between {low} and {high}", f"The smaller one first: between {high} and {low}")
            node = Several((_ordered(column, ">=", low), _ordered(column, "<=", high)), every=True)
        else:
            expected = "`in`, `like` or `between`" if opposite else "a comparison, such as = or `in`,"
            fail(found, f"expected {expected} after {column}, found {shown(found)}", EXAMPLE)
        return Not(node) if opposite else node

    def _compared(self, column: str, written: Token) -> Node:
        sign = SIGNS[written.written]
        if sign != "=":
            self._refuse_order_of_list(column, written)
        if COLUMNS[column] in (int, float) and self.token.kind == "word" and not self.token.keyword():
            other = _column_named(self._advance())
            if COLUMNS[other] not in (int, float):
                fail(written, f"{column} is a number and {other} is not; only numbers are compared with each other")
            return Compare(column, sign, 0, other)
        value = self._value(column)
        return _equal(column, [value]) if sign == "=" else _ordered(column, sign, value)

    def _refuse_order_of_list(self, column: str, token: Token) -> None:
        if COLUMNS[column] is list:
            fail(
                token,
                f"{column} is a list, which {shown(token)} does not compare",
                "Lists know =, !=, `in`, `like` and `is null`.",
            )

    def _like(self, column: str, token: Token) -> Node:
        if COLUMNS[column] in (int, float):
            fail(token, f"{column} is a number; `like` is for texts", f"For example: {column} between 1 and 9")
        return Like(column, (Pattern.like(self._text(column)),))

    def _near(self, near: Token) -> Node:
        values = self._in_parentheses(lambda: self._number("near()"))
        if len(values) != 3:
            fail(near, f"near() has {len(values)} values", "It takes three: near(latitude, longitude, kilometres)")
        self.places += 1
        if self.places > MAX_PLACES:
            fail(near, f"near() stands here more than {MAX_PLACES} times")
        latitude, longitude, kilometres = values
        if not (abs(latitude) <= 90 and abs(longitude) <= 180 and kilometres >= 0):
            fail(
                near,
                f"near({latitude}, {longitude}, {kilometres}) is no place and distance",
                "Latitude is from -90 to 90, longitude from -180 to 180, and kilometres not below 0.",
            )
        return Near(*map(float, values))

    def _in_parentheses(self, read: Callable[[], Value]) -> list[Value]:
        """Values with commas between them."""
        start = self.token
        self._expect("(", f"after {shown(self.tokens[self.next - 1])}")
        values = [read()]
        while self._take(","):
            values.append(read())
        self._expect(")", f"or a comma in the list that begins at character {start.place}")
        if len(values) > MAX_ENTRIES:
            fail(start, f"a list of {len(values):,}; at most {MAX_ENTRIES:,} are read")
        return values

    def _value(self, column: str) -> int | float | str:
        if COLUMNS[column] in (int, float):
            number = self._number(column)
            if COLUMNS[column] is int and isinstance(number, float):
                fail(self.tokens[self.next - 1], f"{column} is a whole number, which {number} is not")
            return number
        text = self._text(column)
        if column == "format":
            return FORMATS.get(text.lower(), text)
        return _date(column, text, self.tokens[self.next - 1]) if column in DATES else text

    def _number(self, whose: str) -> int | float:
        """Whole ones as int, however they are written."""
        token = self._advance()
        if token.kind != "number":
            quotes = " without quotes" if token.kind == "text" else ""
            null = f"Whether it is known: {whose} is null" if token.keyword() == "null" else ""
            fail(token, f"{whose} takes a number{quotes}, found {shown(token)}", null)
        number = float(token.written)
        if abs(number) > LARGEST:
            fail(token, f"{token.written[:SHOWN]} is too large a number")
        return int(number) if number.is_integer() else number

    def _text(self, whose: str) -> str:
        token = self._advance()
        if token.kind != "text":
            hint = f"In quotes: '{token.written[:SHOWN]}'" if token.kind in ("number", "word") else ""
            if token.keyword() == "null":
                hint = f"Whether it is known: {whose} is null"
            fail(token, f"{whose} takes a text in quotes, found {shown(token)}", hint)
        quote = token.written[0]
        text = token.written[1:-1].replace(quote * 2, quote)
        if re.search("[\0\ud800-\udfff]", text):
            fail(token, "the text holds a character that no database takes: a zero or half a pair")
        if COLUMNS[whose] is list and "\n" in text:
            fail(token, f"the text has two lines; an entry of {whose} has one")
        return text


def _column_named(token: Token) -> str:
    name = token.written.lower() if token.written.isascii() else token.written
    name = ALIASES.get(name, name)
    if name not in COLUMNS:
        fail(token, f"there is no column {token.written[:SHOWN]}", nearest(name[:SHOWN], [*COLUMNS, *ALIASES]))
    return name


def _date(column: str, text: str, token: Token) -> str:
    """As it is stored."""
    if not DATE.fullmatch(text) or not _is_moment(text):
        fail(
            token,
            f"{column} is a date, which {text[:SHOWN]!r} is not",
            "Such as '2024', '2024-07-01' or '2024-07-01 12:30'.",
        )
    return text.replace(" ", "T")


def _is_moment(text: str) -> bool:
    """Whether the calendar and the clock have it: there is no month 13."""
    try:
        datetime.fromisoformat(text.replace(" ", "T") + BEGIN_OF_DATES[len(text) :])
    except ValueError:
        return False
    return True


def _equal(column: str, values: list[int | float | str]) -> Node:
    if column in DATES:
        dates = tuple(
            Several((_ordered(column, ">=", date), _ordered(column, "<=", date)), every=True) for date in values
        )
        return dates[0] if len(dates) == 1 else Several(dates, every=False)
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        return Like(column, tuple(map(Pattern.exactly, texts)))
    return OneOf(column, tuple(value for value in values if not isinstance(value, str)))


def _ordered(column: str, sign: str, value: int | float | str) -> Node:
    """A date stands for all moments that begin with it."""
    if column in DATES and sign in ("<=", ">"):
        return Compare(column, "<" if sign == "<=" else ">=", f"{value}{AFTER_DATES}")
    return Compare(column, sign, value)
