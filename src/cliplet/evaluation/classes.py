"""What a class is called in a prompt, and the prompts that make a classifier of a text tower."""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliplet.data.labelled import LABEL_COLUMNS, some_of
from cliplet.data.records import Problem
from cliplet.data.table_rows import small, table_rows
from cliplet.errors import ConfigError, DataError, nearest

GAP = "{}"  # where a template takes the class's words
SYNONYMS = "|"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "words": ("{}",),
    "simple": ("a photo of a {}",),
    "photo": (
        "a photo of a {}",
        "a picture that shows a {}",
        "a {} seen up close",
        "a {} in the distance",
        "a blurry snapshot of a {}",
        "a small image of the {}",
        "several {} in one photo",
        "a {} in its usual surroundings",
    ),
}
WORDNET_ID = re.compile(r"n\d{8}")

Words = tuple[str, ...]  # what one class is called: at least one synonym


def templates_of(text: str) -> tuple[str, ...]:
    """The templates that `text` names: one of TEMPLATES, a file with one a line, or a single template itself.

    Raises ConfigError for what is none of these, and for a template without exactly one {}.
    """
    if text in TEMPLATES:
        return TEMPLATES[text]
    if GAP not in text and _is_file(text):
        try:
            lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{text}: the templates cannot be read: {error}") from None
        templates = tuple(line.strip() for line in lines if line.strip())
        if not templates:
            raise ConfigError(f"{text}: holds no template", "Write one a line, such as: a photo of a {}")
    elif GAP in text or " " in text:
        templates = (text.strip(),)
    else:
        raise ConfigError(f"there are no templates {text!r}, and no such file", nearest(text, TEMPLATES))
    for template in templates:
        if template.count(GAP) != 1:
            where = f"{text}: " if template != text.strip() else ""
            raise ConfigError(
                f"{where}the template {template!r} has {template.count(GAP)} places for the class's words, not one",
                "Write {} where the class's words go, once, as in: a photo of a {}",
            )
    return templates


def prompts(words: Words, templates: Sequence[str]) -> list[str]:
    """Every synonym in every template."""
    return [template.replace(GAP, synonym) for synonym in words for template in templates]


def class_words(classes: Sequence[str], file: Path | None = None) -> tuple[list[Words], list[str]]:
    """What each class is called, in their order, and what one should know about it.

    Without a `file` a class is called as its folder or label, with spaces for _ and -. A `file` names the words of each
    class, synonyms set apart by |: lines `CLASS: words` (.txt), an object of class and words (.json), columns of class
    and words (.csv, .tsv). Where the classes are the numbers from 0, a .txt of words alone or a JSON list names them
    in order. Raises DataError for a class that the file does not name, for one that it names twice with different
    words, and for a file that cannot be read.
    """
    if file is None:
        words: list[Words] = [(" ".join(re.split(r"[\s_-]+", name)).strip() or name,) for name in classes]
    else:
        named = _named(file, classes)
        missing = [name for name in classes if name not in named]
        if missing:
            raise DataError(
                f"{file}: does not name {len(missing)} of {len(classes)} classes: {some_of(missing)}",
                _offered(missing[0], list(named)),
            )
        words = [_synonyms(named[name], file, name) for name in classes]
    return words, _notes(classes, words)


def are_words(words: Sequence[Words]) -> bool:
    """Whether most classes are called by something a text tower may know: not by numbers or WordNet's ids."""
    return 2 * sum(any(map(_is_word, synonyms)) for synonyms in words) > len(words)


def _is_word(text: str) -> bool:
    return any(character.isalpha() for character in text) and not WORDNET_ID.fullmatch(text)


def _offered(missing: str, named: Sequence[str]) -> str:
    """What a file names in the place of a class that is missing."""
    close = difflib.get_close_matches(missing, named, n=1, cutoff=0.5)
    if close:
        return f"Its {close[0]!r} may be meant for {missing!r}."
    return f"It names {some_of(named)}." if named else "It names no class."


def _notes(classes: Sequence[str], words: Sequence[Words]) -> list[str]:
    notes = []
    called: defaultdict[Words, list[str]] = defaultdict(list)
    for name, synonyms in zip(classes, words, strict=True):
        called[tuple(sorted(synonym.lower() for synonym in synonyms))].append(name)
    for synonyms, names in called.items():
        if len(names) > 1:
            notes.append(f"classes {' and '.join(names)} have the same words, {synonyms[0]!r}: each is always wrong")
    if not are_words(words):
        examples = some_of([synonyms[0] for synonyms in words])
        notes.append(f"most classes are called by no words ({examples}); --classes FILE can name them")
    return notes


def _named(file: Path, classes: Sequence[str]) -> dict[str, str]:
    """Words by class, as they are written."""
    ending = file.suffix.lower()
    if ending == ".json":
        return _from_json(file, classes)
    if ending in (".csv", ".tsv"):
        problems: list[Problem] = []
        rows = table_rows(file, problems)
        columns = {"folder", "name", "id", *LABEL_COLUMNS}
        if rows and small(rows[0].cells)[0] in columns and rows[0].cells[0].strip() not in classes:
            rows = rows[1:]
        problems += [Problem(f"{file.name}:{row.number}", "has no two columns") for row in rows if len(row.cells) < 2]
        if problems:
            raise DataError(f"{file}: {problems[0].where} {problems[0].reason}", "Expected are columns class,words.")
        return _unique(file, [(row.cells[0].strip(), row.cells[1]) for row in rows])
    lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
    parts = [_parted(line) for line in lines]
    if any(parts):
        bare = next((line for line, pair in zip(lines, parts, strict=True) if pair is None), None)
        if bare is not None:
            raise DataError(f"{file}: {bare!r} is not of the form CLASS: words")
        return _unique(file, [pair for pair in parts if pair is not None])
    return _in_order(file, lines, classes)


def _parted(line: str) -> tuple[str, str] | None:
    for mark in ("\t", ": ", "="):
        name, found, words = line.partition(mark)
        if found:
            return name.strip(), words
    return None


def _from_json(file: Path, classes: Sequence[str]) -> dict[str, str]:
    try:
        found: Any = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON: {error}") from None
    entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    written = []
    for name, words in entries:
        joined = SYNONYMS.join(words) if isinstance(words, list) and all(isinstance(w, str) for w in words) else words
        if not isinstance(joined, str):
            raise DataError(f"{file}: the words of {name!r} are neither a text nor a list of texts")
        written.append((str(name), joined))
    if isinstance(found, dict):
        return dict(written)
    return _in_order(file, [words for _, words in written], classes)


def _in_order(file: Path, words: list[str], classes: Sequence[str]) -> dict[str, str]:
    """Words of the classes 0, 1, 2, ...; other classes would be named by guessing."""
    if not all(name.isdecimal() for name in classes):
        raise DataError(
            f"{file}: does not say which words are whose, and the classes are no numbers ({some_of(classes)})",
            "Write a line for each class: CLASS: words | other words",
        )
    by_number = {int(name): name for name in classes}
    return {by_number.get(number, str(number)): text for number, text in enumerate(words)}


def _unique(file: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, words in pairs:
        if named.setdefault(name, words).strip() != words.strip():
            raise DataError(f"{file}: names {name!r} twice: {named[name].strip()!r} and {words.strip()!r}")
    return named


def _synonyms(written: str, file: Path, name: str) -> Words:
    words = tuple(dict.fromkeys(" ".join(one.split()) for one in written.split(SYNONYMS) if one.strip()))
    if not words:
        raise DataError(f"{file}: has no words for the class {name!r}")
    return words


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the names of classes cannot be read: {error}") from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a text that no system takes as a name
        return False
