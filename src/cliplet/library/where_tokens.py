"""Filters as tokens: words, numbers, texts in quotes and signs, and how messages name them."""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from cliplet.errors import ConfigError

MAX_CHARACTERS = 4096
SHOWN = 40  # characters of what a person wrote, in a message
KEYWORDS = frozenset(("and", "or", "not", "in", "like", "between", "is", "null", "near"))
EXAMPLE = "For example: year = 2024 and width > 2000 and tag in ('beach', 'sea')"
TOKEN = re.compile(
    r"""\s*(?:
        (?P<word>[^\W\d]\w*)
      | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<sign><=|>=|<>|!=|==|[=<>(),])
      | (?P<end>\Z)
      | (?P<wrong>.)
    )""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A word, a number, a text or a sign; `kind` is the name of its group in TOKEN."""

    kind: str
    written: str
    place: int  # of its first character, from 1

    def keyword(self) -> str:
        """The keyword or sign that it is, in small letters; "" if it is none."""
        if self.kind == "sign":
            return self.written
        word = self.written.lower() if self.written.isascii() else ""
        return word if word in KEYWORDS else ""


def tokens_of(text: str) -> list[Token]:
    """All tokens, the end as the last. Raises ConfigError for what is none."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"the filter has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    tokens: list[Token] = []
    place = 0
    while not tokens or tokens[-1].kind != "end":
        match = TOKEN.match(text, place)
        assert match and match.lastgroup  # anything is at least wrong
        token = Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1)
        if token.kind == "wrong":
            _refuse_character(token, text)
        tokens.append(token)
        place = match.end()
    return tokens


def _refuse_character(token: Token, text: str) -> NoReturn:
    character = token.written
    if character in "'\"":
        fail(token, f"the text that begins with {character} has no end", f"A {character} in it is written twice.")
    if character in "‘’‚‛“”„‟`´":
        fail(token, f"{character} is no quotation mark here", "Texts stand in straight ones: 'beach'.")
    if number := re.match(r"[-+.]*[0-9][-+.\w]*", text[token.place - 1 :]):
        fail(token, f"{number[0][:SHOWN]} is no number", EXAMPLE)
    if character in ";*/\\-+.#%&|!":
        fail(token, f"{character!r} has no meaning outside of a text in quotes", EXAMPLE)
    fail(token, f"unexpected character {character!r}", EXAMPLE)


def fail(token: Token, what: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"the filter, at character {token.place}: {what}", hint)


def shown(token: Token) -> str:
    """A token as messages name it."""
    if token.kind == "end":
        return "the end"
    short = token.written if len(token.written) <= SHOWN else token.written[:SHOWN] + "..."
    if not short.isprintable():
        return repr(short)
    return short if token.kind == "text" else f"`{short}`"
