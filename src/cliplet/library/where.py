"""The language of filters, as in `year = 2024 and width > 2000 and not tag in ('beach', 'sea')`.

What a person writes is parsed here (`where_parser.py`) into a tree, and the tree is written for SQLite, for LanceDB or
evaluated: no database ever reads the person's own text.

    comparison   = == != <> < <= > >=   of a column with a number, a text in quotes or, of numbers, another column
                 [not] in (...)   [not] between ... and ...   is [not] null
                 [not] like '...'   % stands for any characters, _ for one; no character escapes them
                 near(latitude, longitude, kilometres)   along the earth's surface
    combination  not, and, or, in this order, and parentheses

**Texts** are compared by `=`, `in` and `like` without regard to capitals: ASCII's, and every letter with a capital that
is one letter too (ü and Ü, but not ß and SS). An accent is part of its letter, composed and decomposed letters differ.
By `<` and `>` they are ordered as Unicode numbers their characters, capitals before small letters.
**Dates** (`taken`, `added`) are compared as far as they are written: `taken = '2024-07'` is any moment of that month,
`taken > '2024-07'` one after it, and `between '2024-07-01' and '2024-07-31'` takes in the whole last day.
**Lists** (`captions`, `tags`; `caption` and `tag` say the same) are compared entry by entry: `tag = 'x'` where any tag
is x, `tag != 'x'` where none is. A picture without any has an empty list, of which no entry is anything.
**Null**, in every other column, is unknown, and so is each comparison with it and the opposite of that, as in SQL; what
is unknown does not pass. `not year > 2020` leaves out the pictures of an unknown year.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cliplet.library.where_sql import Dialect, Lance, Pattern, Sqlite, joined

# In the order in which people are shown them; `id` is no column to filter by.
COLUMNS: dict[str, type] = {
    "path": str,
    "name": str,
    "folder": str,
    "format": str,
    "bytes": int,
    "width": int,
    "height": int,
    "taken": str,
    "year": int,
    "month": int,
    "day": int,
    "hour": int,
    "latitude": float,
    "longitude": float,
    "camera": str,
    "captions": list,
    "tags": list,
    "added": str,
}
EARTH = 6371.0088  # kilometres, the mean radius
SLACK = 1e-6  # kilometres that a circle is wider, against rounding
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPPOSITES = {"=": "<>", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Not:
    """The opposite."""

    term: Node

    def holds(self, record: Record) -> bool | None:
        known = self.term.holds(record)
        return None if known is None else not known

    def sql(self, dialect: Dialect, yes: bool) -> str:
        return self.term.sql(dialect, not yes)

    def names(self) -> Iterable[str]:
        return self.term.names()


@dataclass(frozen=True)
class Several:
    """All of the terms, or any of them."""

    terms: tuple[Node, ...]
    every: bool

    def holds(self, record: Record) -> bool | None:
        known = [term.holds(record) for term in self.terms]
        if (not self.every) in known:
            return not self.every
        return None if None in known else self.every

    def sql(self, dialect: Dialect, yes: bool) -> str:
        return joined("AND" if self.every == yes else "OR", [term.sql(dialect, yes) for term in self.terms])

    def names(self) -> Iterable[str]:
        return (name for term in self.terms for name in term.names())


@dataclass(frozen=True)
class Compare:
    """A column against a value, or against another column."""

    column: str
    sign: str  # of COMPARISONS
    value: int | float | str
    other: str = ""  # the other column, in place of the value

    def holds(self, record: Record) -> bool | None:
        left, right = record.get(self.column), record.get(self.other) if self.other else self.value
        return None if left is None or right is None else COMPARISONS[self.sign](left, right)

    def sql(self, dialect: Dialect, yes: bool) -> str:
        sign = self.sign if yes else OPPOSITES[self.sign]
        return f"{dialect.name(self.column)} {sign} {dialect.name(self.other) or dialect.value(self.value)}"

    def names(self) -> Iterable[str]:
        return filter(None, (self.column, self.other))


@dataclass(frozen=True)
class OneOf:
    """A column of numbers that has one of some values."""

    column: str
    values: tuple[int | float, ...]

    def holds(self, record: Record) -> bool | None:
        value = record.get(self.column)
        return None if value is None else value in self.values

    def sql(self, dialect: Dialect, yes: bool) -> str:
        name, values = dialect.name(self.column), ", ".join(map(dialect.value, self.values))
        # DataFusion takes `x NOT IN (1) OR x NOT IN (2)` for true, though x may be null.
        return f"{name} IN ({values})" if yes else f"{name} IS NOT NULL AND {name} NOT IN ({values})"

    def names(self) -> Iterable[str]:
        return (self.column,)


@dataclass(frozen=True)
class Like:
    """A column's text, or any entry of its list, that fits any of some patterns."""

    column: str
    patterns: tuple[Pattern, ...]

    def holds(self, record: Record) -> bool | None:
        value = record.get(self.column)
        if COLUMNS[self.column] is list:
            return any(pattern.fits(entry) for pattern in self.patterns for entry in entries(value))
        return None if value is None else any(pattern.fits(value) for pattern in self.patterns)

    def sql(self, dialect: Dialect, yes: bool) -> str:
        name = dialect.name(self.column)
        if COLUMNS[self.column] is not list:
            fits = dialect.text_fits(name, self.patterns)
            return fits if yes else f"NOT {fits}"
        fits = dialect.entry_fits(name, self.patterns)
        return fits if yes else f"({name} IS NULL OR NOT {fits})"

    def names(self) -> Iterable[str]:
        return (self.column,)


@dataclass(frozen=True)
class Null:
    """A column without a value."""

    column: str

    def holds(self, record: Record) -> bool:
        value = record.get(self.column)
        return not entries(value) if COLUMNS[self.column] is list else value is None

    def sql(self, dialect: Dialect, yes: bool) -> str:
        return f"{dialect.name(self.column)} IS {'' if yes else 'NOT '}NULL"

    def names(self) -> Iterable[str]:
        return (self.column,)


@dataclass(frozen=True)
class Near:
    """Pictures taken at most some kilometres from a point, by the great circle."""

    latitude: float
    longitude: float
    kilometres: float

    def holds(self, record: Record) -> bool | None:
        if record.get("latitude") is None or record.get("longitude") is None:
            return None
        north, east = math.radians(record["latitude"]), math.radians(record["longitude"])
        own_north, own_east = math.radians(self.latitude), math.radians(self.longitude)
        across = math.cos(own_north) * math.cos(north) * math.sin((east - own_east) / 2) ** 2
        return math.sin((north - own_north) / 2) ** 2 + across <= self._limit()

    def _limit(self) -> float:
        """The largest haversine; the farthest point's is 1, but for rounding."""
        half_angle = (self.kilometres + SLACK) / EARTH / 2
        return 2.0 if half_angle >= math.pi / 2 else math.sin(half_angle) ** 2

    def sql(self, dialect: Dialect, yes: bool) -> str:
        """The box around the circle first, which decides for most pictures, and then the distance."""
        latitude, longitude = dialect.name("latitude"), dialect.name("longitude")
        upright = dialect.sine(f"({latitude} - {self.latitude!r}) / 2")
        # Half the way round, folded to 0..90 degrees: the sine of an angle is that of what it lacks to 180.
        level = dialect.sine(f"90 - abs(90 - abs({longitude} - {self.longitude!r}) / 2)")
        cosines = f"{math.cos(math.radians(self.latitude))!r} * {dialect.sine(f'90 - abs({latitude})')}"
        distance = f"{upright} * {upright} + {cosines} * {level} * {level}"
        box = self._box(latitude, longitude)
        if yes:
            return joined("AND", [*box, f"{distance} <= {self._limit()!r}"])
        outside = joined("OR", [*(f"NOT ({one})" for one in box), f"{distance} > {self._limit()!r}"])
        return f"{latitude} IS NOT NULL AND {longitude} IS NOT NULL AND {outside}"

    def _box(self, latitude: str, longitude: str) -> list[str]:
        """Conditions for the degrees that the circle reaches; a circle around a pole reaches all longitudes."""
        angle = (self.kilometres + 2 * SLACK) / EARTH
        reach = math.degrees(angle)
        south, north = self.latitude - reach, self.latitude + reach
        conditions = [f"{latitude} >= {south!r} AND {latitude} <= {north!r}"]
        if south <= -90 or north >= 90:
            return conditions
        wide = math.degrees(math.asin(min(1.0, math.sin(angle) / math.cos(math.radians(self.latitude)))))
        west, east = self.longitude - wide, self.longitude + wide
        word = "AND" if west >= -180 and east <= 180 else "OR"  # across the 180th meridian the two ends meet
        west, east = west + 360 * (west < -180), east - 360 * (east > 180)
        return [*conditions, f"({longitude} >= {west!r} {word} {longitude} <= {east!r})"]

    def names(self) -> Iterable[str]:
        return ("latitude", "longitude")


Node = Not | Several | Compare | OneOf | Like | Null | Near


@dataclass(frozen=True)
class Where:
    """A filter: what was written, and what it means."""

    text: str
    tree: Node

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at, in their order."""
        used = set(self.tree.names())
        return tuple(name for name in COLUMNS if name in used)

    def sqlite(self) -> tuple[str, list[Any]]:
        """An SQL condition in parentheses and the values of its question marks."""
        dialect = Sqlite()
        return f"({self.tree.sql(dialect, yes=True)})", dialect.values

    def lance(self) -> str:
        """The condition in parentheses for LanceDB, with the values in it."""
        return f"({self.tree.sql(Lance(), yes=True)})"

    def matches(self, record: Record) -> bool:
        """Whether one picture passes; `record` holds its columns, lists as sequences or as they are stored."""
        return self.tree.holds(record) is True


def parse(text: str) -> Where:
    """A filter as written. Raises ConfigError, which says what is wrong and at which character."""
    from cliplet.library.where_parser import Parser  # it makes the nodes above

    return Where(text, Parser(text).tree())


def entries(stored: str | Sequence[str] | None) -> Sequence[str]:
    """The entries of a list, which is stored with a newline before, between and after them."""
    return stored.split("\n")[1:-1] if isinstance(stored, str) else stored or ()
