"""A JSON document's lists, read piece by piece: a file of gigabytes takes no more memory than its longest value.

The pieces are parsed by Python's own parser, whole runs of list items at a time: as fast as `json.load`, which would
hold everything at once.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cliplet.errors import DataError

WINDOW = 2**18  # bytes
SPACE = re.compile(r"[ \t\r\n]*")
BETWEEN = re.compile(r"[ \t\r\n]*,[ \t\r\n]*\{")  # what stands between two objects of a list, the first brace left out
BRACES_TRIED = 100
NEAR_THE_END = 16  # characters; an error so near may go away when more is read


def read_lists(file: Path) -> Iterator[tuple[str, list[Any] | None]]:
    """The items of each list that a document holds at its top, in blocks, with the key under which the list stands;
    "" where the document itself is the list. Of another value, only its key comes, and None.

    Raises DataError for what is not JSON, or is cut short: what stands before the fault
    has been given by then.
    """
    try:
        with _Window(file) as window:
            yield from _lists(window)
            if window.peek():
                raise window.error("there is more after its end")
    except UnicodeDecodeError as error:
        raise _not_json(file, f"is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _not_json(file, "is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _not_json(file, error.msg) from None


def _not_json(file: Path, reason: str) -> DataError:
    return DataError(f"{file}: is not JSON: {reason}", "If it was copied or downloaded, it may be cut short.")


def _lists(window: _Window) -> Iterator[tuple[str, list[Any] | None]]:
    first = window.peek()
    if first == "[":
        yield from (("", block) for block in _blocks(window))
    elif first != "{":
        window.value()
    else:
        window.take("{")
        more = window.peek() != "}"
        while more:
            key = window.value()
            if not isinstance(key, str):
                raise window.error("a key is no text")
            window.take(":")
            if window.peek() == "[":
                yield from ((key, block) for block in _blocks(window))
            else:
                window.value()
                yield key, None
            more = window.peek() != "}"
            if more:
                window.take(",")
        window.take("}")


def _blocks(window: _Window) -> Iterator[list[Any]]:
    """The items of the list that begins here, in blocks; the first is there even if it is empty."""
    window.take("[")
    if window.peek() == "]":
        yield []
    else:
        several = True
        while True:
            block = window.values() if several else None
            if block is None:  # items in items: the last boundary within the window is seldom one of this list
                several = False
                block = [window.value()]
            yield block
            if window.peek() == "]":
                break
            window.take(",")
    window.take("]")


class _Window:
    """The part of a file that is looked at, and the place in it."""

    def __init__(self, file: Path):
        self._stream = file.open("rb")
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._read, self._ended = "", 0, 0, False

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def error(self, reason: str) -> json.JSONDecodeError:
        """For the place that is looked at."""
        return json.JSONDecodeError(f"{reason} (about character {self._read - len(self._text) + self._at:,})", "", 0)

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            end = SPACE.match(self._text, self._at)
            self._at = end.end() if end else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, mark: str) -> None:
        """Goes past a mark that must come now."""
        found = self.peek()
        if found != mark:
            raise self.error(f"{mark} is expected where {found or 'the end'} stands")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - NEAR_THE_END
                if cut and not self._ended:
                    self._more()
                    continue
                raise self.error(error.msg) from None
            if end > len(self._text) - NEAR_THE_END and not self._ended:  # a number may go on: 1.5 may become 1.5e-10
                self._more()
                continue
            self._at = end
            return value

    def values(self) -> list[Any] | None:
        """Items of a list of objects, as many as the window holds; None where they cannot be told apart so."""
        if len(self._text) - self._at < WINDOW // 2 and not self._ended:
            self._more()
        brace = len(self._text)
        for _ in range(BRACES_TRIED):
            brace = self._text.rfind("}", self._at, brace)
            if brace < 0 or BETWEEN.match(self._text, brace + 1):
                break
        else:
            return None
        if brace < 0:
            return None
        try:  # whatever is whole as a list was cut between two of its items
            block: list[Any] = json.loads(f"[{self._text[self._at : brace + 1]}]")
        except json.JSONDecodeError:
            return None
        self._at = brace + 1
        return block

    def _more(self) -> None:
        """Reads on; twice as far each time, where one value takes it all."""
        left = self._text[self._at :]
        data = self._stream.read(max(WINDOW, len(left)))
        self._ended = not data
        new = self._decoder.decode(data, final=self._ended)
        self._text, self._at = left + new, 0
        self._read += len(new)
