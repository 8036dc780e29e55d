"""What a survey says of files: which can be used, how large they are, what is odd about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cliplet.data.inspection.findings import Listing, Spread
from cliplet.data.inspection.looks import USUAL_COLOURS
from cliplet.data.inspection.survey import Survey
from cliplet.data.records import Problem

SMALL = 32  # pixels of the shorter side below which a picture shows little
STRETCHED = 3.0  # longer to shorter side; a square cut from the middle shows less than a third of it


@dataclass(frozen=True)
class FileFindings:
    """Findings are made when they are asked for."""

    survey: Survey

    @property
    def files(self) -> int:
        """Different paths."""
        return len(self.survey.first_row)

    @cached_property
    def readable(self) -> int:
        """Files that decode."""
        return int(self.survey.looks.good.sum())

    @cached_property
    def width(self) -> Spread | None:
        """Pixels of the readable files, upright; None without any."""
        return Spread.of(self.survey.looks.width[self.survey.looks.good])

    @cached_property
    def height(self) -> Spread | None:
        return Spread.of(self.survey.looks.height[self.survey.looks.good])

    @cached_property
    def file_size(self) -> Spread | None:
        """Bytes of the readable files."""
        return Spread.of(self.survey.looks.size[self.survey.looks.good])

    @cached_property
    def formats(self) -> dict[str, int]:
        """Readable files by format, the most frequent first."""
        return _counted(self.survey.looks.format, self.survey.looks.formats)

    @cached_property
    def colours(self) -> dict[str, int]:
        """Readable files by how they store colours, the most frequent first."""
        return _counted(self.survey.looks.colour, self.survey.looks.colours)

    @cached_property
    def animated(self) -> int:
        return int(self.survey.looks.animated.sum())

    def _named(self, chosen: np.ndarray, reason: Callable[[int], str]) -> Listing[Problem]:
        place = self.survey.place
        return Listing(np.flatnonzero(chosen), lambda file: Problem(place(file), reason(file)))

    def _reason(self, file: int) -> str:
        return self.survey.looks.reasons[self.survey.looks.reason[file]]

    def _pixels(self, file: int) -> str:
        return f"{self.survey.looks.width[file]:,}x{self.survey.looks.height[file]:,} pixels"

    @cached_property
    def missing(self) -> Listing[Problem]:
        return self._named(self.survey.looks.missing, self._reason)

    @cached_property
    def unreadable(self) -> Listing[Problem]:
        return self._named(~self.survey.looks.good & ~self.survey.looks.missing, self._reason)

    @cached_property
    def mislabelled(self) -> Listing[Problem]:
        """Files whose name says another format than their bytes; they are read as what they are."""
        looks = self.survey.looks
        return self._named(looks.mislabelled, lambda file: f"is {looks.formats[looks.format[file]]}")

    @cached_property
    def unusual(self) -> Listing[Problem]:
        """Files that are converted before use: inks, palettes, 16 bits, and animations, of which the first frame is
        taken."""
        looks = self.survey.looks
        usual = np.isin(looks.colour, [n for n, name in enumerate(looks.colours) if name in USUAL_COLOURS])
        colours = [f"{name}, animated" for name in looks.colours]
        return self._named(
            looks.good & (~usual | looks.animated),
            lambda file: (colours if looks.animated[file] else looks.colours)[looks.colour[file]],
        )

    @cached_property
    def small(self) -> Listing[Problem]:
        """Pictures with a side under SMALL pixels."""
        looks = self.survey.looks
        return self._named(looks.good & (np.minimum(looks.width, looks.height) < SMALL), self._pixels)

    @cached_property
    def stretched(self) -> Listing[Problem]:
        """Pictures more than STRETCHED times as long as wide, or as wide as long."""
        looks = self.survey.looks
        longer, shorter = np.maximum(looks.width, looks.height), np.minimum(looks.width, looks.height)
        return self._named(looks.good & (longer > STRETCHED * shorter), self._pixels)

    @cached_property
    def blank(self) -> Listing[Problem]:
        """Pictures of nearly one colour."""
        return self._named(self.survey.looks.blank, lambda _: "shows hardly more than one colour")


def _counted(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    return {names[code]: int(counts[code]) for code in np.argsort(-counts, kind="stable")}
