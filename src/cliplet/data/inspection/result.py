"""What a survey comes to: all that is counted and named, made when it is asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cliplet.data.inspection.files import FileFindings
from cliplet.data.inspection.findings import (
    CaptionFindings,
    Copies,
    Duplicates,
    Leak,
    Lengths,
    Listing,
    Place,
    SplitCount,
)
from cliplet.data.inspection.groups import Groups, leaks, shared
from cliplet.data.records import Problem

# What --json says as it is, and as lists.
FIGURES = "path form made_splits pictures captions words_mean words_max files readable formats colours animated sound"
LISTS = "missing unreadable problems duplicates_within duplicates_across near_within near_across leaks"
ODD = "mislabelled unusual small stretched blank twice"


@dataclass(frozen=True)
class Inspection(FileFindings):
    """What a source holds. A picture is a record: one file listed in two splits counts as two pictures."""

    @property
    def path(self) -> str:
        return self.survey.source.path

    @property
    def form(self) -> str:
        return self.survey.source.form

    @property
    def made_splits(self) -> bool:
        """The source names none, so train and val are the ones cliplet makes."""
        return self.survey.made_splits

    @property
    def pictures(self) -> int:
        return len(self.survey.split)

    @property
    def captions(self) -> int:
        return self.words.total

    @cached_property
    def splits(self) -> dict[str, SplitCount]:
        names = self.survey.split_names
        pictures = np.bincount(self.survey.split, minlength=len(names))
        captions = np.bincount(self.survey.split, self.survey.source.records.caption_counts(), len(names))
        return {name: SplitCount(int(pictures[n]), int(captions[n])) for n, name in enumerate(names)}

    @property
    def captions_per_picture(self) -> dict[int, int]:
        """Number of captions -> pictures that have so many."""
        return self.texts.per_picture.counts

    @property
    def captions_mean(self) -> float:
        """Captions a picture."""
        return self.texts.per_picture.mean

    @property
    def words(self) -> Lengths:
        """Words of a caption."""
        return self.texts.words

    @property
    def words_mean(self) -> float:
        return self.words.mean

    @property
    def words_max(self) -> int:
        return self.words.maximum

    @property
    def texts(self) -> CaptionFindings:
        """What the captions are like."""
        return self.survey.captions

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of the source: lines and captions left out."""
        return tuple(self.survey.source.problems)

    @cached_property
    def twice(self) -> Listing[Problem]:
        """Pictures that have a caption twice."""
        records = self.survey.source.records
        return Listing(self.texts.twice, lambda row: Problem(records[row].image, "has a caption twice"))

    @cached_property
    def _same_bytes(self) -> Groups:
        return Groups.of(self.survey.same_bytes[self.survey.file])

    @cached_property
    def _same_picture(self) -> Groups:
        """Groups in which not all bytes are the same."""
        groups = Groups.of(self.survey.same_picture[self.survey.file])
        return groups.only(groups.differ(self.survey.same_bytes[self.survey.file]))

    def _place(self, row: int) -> Place:
        return Place(self.survey.source.records[row].image, self.survey.split_of(row))

    def _places(self, rows: np.ndarray) -> tuple[Place, ...]:
        return tuple(self._place(int(row)) for row in rows)

    def _duplicates(self, across: bool) -> Listing[Duplicates]:
        groups, survey = self._same_bytes, self.survey

        def make(number: int) -> Duplicates:
            rows = groups.group(number)
            return Duplicates(survey.looks.sha256[survey.file[rows[0]]].tobytes().hex(), self._places(rows))

        return Listing(np.flatnonzero(groups.differ(survey.split) == across), make)

    def _copies(self, across: bool) -> Listing[Copies]:
        groups = self._same_picture
        chosen = np.flatnonzero(groups.differ(self.survey.split) == across)
        return Listing(chosen, lambda number: Copies(self._places(groups.group(number))))

    @cached_property
    def duplicates_within(self) -> Listing[Duplicates]:
        """The same bytes, all places in one split."""
        return self._duplicates(across=False)

    @cached_property
    def duplicates_across(self) -> Listing[Duplicates]:
        """The same bytes in several splits: training sees what is tested."""
        return self._duplicates(across=True)

    @cached_property
    def near_within(self) -> Listing[Copies]:
        """The same picture in other bytes, all places in one split."""
        return self._copies(across=False)

    @cached_property
    def near_across(self) -> Listing[Copies]:
        """The same picture in other bytes, in several splits."""
        return self._copies(across=True)

    @cached_property
    def leaks(self) -> tuple[Leak, ...]:
        """What splits share, by the same bytes or in other bytes."""
        survey = self.survey
        names, every = survey.split_names, Groups.of(survey.same_picture[survey.file])
        same_bytes, same_picture = (groups.counts(survey.split, len(names)) for groups in (self._same_bytes, every))
        return leaks(same_bytes, same_picture, names)

    @cached_property
    def shared_by_splits(self) -> Counter[tuple[str, ...]]:
        """How many different pictures each combination of splits shares in the same bytes."""
        groups = self._same_bytes.only(self._same_bytes.differ(self.survey.split))
        return shared(groups.counts(self.survey.split, len(self.survey.split_names)), self.survey.split_names)

    @property
    def sound(self) -> bool:
        """Nothing to report but copies within a split, and what is merely odd."""
        broken = self.missing or self.unreadable or self.problems
        return not (broken or self.duplicates_across or self.near_across)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, strings and numbers, for JSON."""
        spreads = {"width": self.width, "height": self.height, "bytes": self.file_size}
        texts, per_picture = self.texts, self.texts.per_picture.as_dict()
        return {
            **{name: getattr(self, name) for name in FIGURES.split()},
            "splits": {name: asdict(count) for name, count in self.splits.items()},
            "captions_per_picture": {key: per_picture[key] for key in ("min", "mean", "max", "histogram")},
            "words": self.words.as_dict(),
            "tokens": texts.tokens.as_dict() if texts.tokens else None,
            "repeated_captions": texts.repeated,
            "most_repeated_captions": [asdict(one) for one in texts.most_repeated],
            "scripts": texts.scripts,
            "script_examples": {script: list(texts.examples[script]) for script in texts.scripts},
            **{name: asdict(spread) if spread else None for name, spread in spreads.items()},
            **{name: [_plain(asdict(item)) for item in getattr(self, name)] for name in f"{LISTS} {ODD}".split()},
            "shared_by_splits": [{"splits": list(s), "pictures": n} for s, n in self.shared_by_splits.items()],
            "all_copies_sought": self.survey.complete,
        }


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
