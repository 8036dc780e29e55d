"""A rendered scene as data, and true captions of it from a small grammar with synonyms.

Every caption names its objects by colour and shape, which no two objects of a scene share, and says nothing
that is near a border: an object is "on the left" only well left of the middle, and "left of" another only
where the way between them is long and rather level. So a caption is never false of its scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

SIDE = 0.36  # a centre nearer than this to an edge stands at that edge
MIDDLE = 0.09  # a centre not farther than this from the middle, in x and in y, stands there
RELATION = 0.22  # centres must be this far apart for "left of" or "above"
SLOPE = 1.5  # and farther apart along that direction than across it by this factor

SHAPES = {
    "circle": ("circle", "disc", "round shape"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
}
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
TEXTURES = {
    "plain": (("plain", ""), ("solid", "")),  # words before the colour, and after the shape
    "striped": (("striped", ""), ("stripy", ""), ("", " with stripes")),
    "dotted": (("dotted", ""), ("spotted", ""), ("", " with dots")),
    "checked": (("checked", ""), ("chequered", ""), ("", " with checks")),
}
PLAIN_PLACES = ("on a {} background", "on a plain {} background", "against a {} background", "on a {} backdrop")
WIDE_PLACES = ("in front of {}", "with {} in the background", "with {} behind")
BACKGROUNDS = {
    "grey": ("grey",),
    "beige": ("beige", "cream"),
    "brown": ("brown",),
    "navy": ("navy", "dark blue"),
    "meadow": ("a meadow", "grass and sky", "a field of grass"),
    "beach": ("a beach", "sand and sea", "the seaside"),
    "sunset": ("a sunset", "an evening sky", "a sunset sky"),
    "snow": ("snow", "a snowy field", "a winter landscape"),
}
POSITIONS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "top left": ("at the top left", "in the upper left"),
    "top right": ("at the top right", "in the upper right"),
    "bottom left": ("at the bottom left", "in the lower left"),
    "bottom right": ("at the bottom right", "in the lower right"),
    "middle": ("in the middle", "in the centre"),
}
RELATIONS = {
    "left": ("to the left of", "on the left of", "left of"),
    "right": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
    "larger": ("larger than", "bigger than"),
    "smaller": ("smaller than",),
}
OPENINGS = ("", "", "", "there is ", "a picture of ", "a drawing of ", "we see ")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object. Lengths are shares of the picture's side; x grows to the right, y downwards."""

    shape: str  # a key of SHAPES
    colour: str  # one of COLOURS
    size: str  # a key of SIZES
    texture: str  # a key of TEXTURES
    x: float  # centre
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Two or three objects that do not overlap, no two alike in shape and colour, on a background."""

    background: str  # a key of BACKGROUNDS
    objects: tuple[SceneObject, ...]


def position(thing: SceneObject) -> str | None:
    """Where in the picture an object stands, a key of POSITIONS; None where that is not clear."""
    row = "top" if thing.y < SIDE else "bottom" if thing.y > 1 - SIDE else ""
    column = "left" if thing.x < SIDE else "right" if thing.x > 1 - SIDE else ""
    if row or column:
        return f"{row} {column}".strip()
    return "middle" if max(abs(thing.x - 0.5), abs(thing.y - 0.5)) <= MIDDLE else None


def relations(first: SceneObject, second: SceneObject) -> list[str]:
    """What `first` clearly is to `second`: keys of RELATIONS."""
    right, down = first.x - second.x, first.y - second.y
    found = []
    if abs(right) >= max(RELATION, SLOPE * abs(down)):
        found.append("right" if right > 0 else "left")
    if abs(down) >= max(RELATION, SLOPE * abs(right)):
        found.append("below" if down > 0 else "above")
    if first.size != second.size:
        found.append("larger" if first.size == "large" else "smaller")
    return found


def describe(scene: Scene, rng: np.random.Generator, count: int = 5) -> list[str]:
    """`count` different captions of a scene, each true of it, in lower case.

    The first names every object and the background. The others are partial: two objects and their relation,
    two objects with their looks, two objects with their places, or one object with its looks, its place and the
    background. Each names at least two objects, or one object with all that can be said of it.
    """
    writer = _Writer(scene, rng)
    kinds: tuple[Callable[[], str], ...] = (writer.all, writer.relation, writer.one, writer.looks, writer.places)
    captions: list[str] = []
    while len(captions) < count:
        caption = kinds[len(captions) % len(kinds)]()
        if caption not in captions:
            captions.append(caption)
    return captions


class _Writer:
    """Writes captions of one scene with words drawn at random."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng

    def all(self) -> str:
        """Every object, and the background."""
        things = [self._thing(thing, size=self._chance(), texture=self._chance()) for thing in self._some(3)]
        listed = ", ".join(things[:-1]) + " and " + things[-1]
        number = {2: "two", 3: "three"}[len(things)]
        noun = self._one_of(("shapes", "objects", "figures"))
        start = self._one_of(("", "", f"{number} {noun}: ", f"there are {number} {noun}: ", "a picture with "))
        return self._ended(start + listed, 1.0)

    def relation(self) -> str:
        """Two objects and what one is to the other; their looks, where nothing is clear."""
        pairs = [(a, b, name) for a, b in permutations(self.scene.objects, 2) for name in relations(a, b)]
        if not pairs:
            return self.looks()
        # Relations in space are the harder half to learn and rarer than those of size.
        in_space = [pair for pair in pairs if pair[2] not in ("larger", "smaller")]
        first, second, name = self._one_of(in_space if in_space and self._chance(0.8) else pairs)
        by_size = name in ("larger", "smaller")
        a, b = (
            self._thing(thing, size=not by_size and self._chance(), texture=self._chance()) for thing in (first, second)
        )
        words = self._one_of(RELATIONS[name])
        link = self._one_of((" is ", " that is ", " which is ") if by_size else (" ", " ", " is "))
        opening = "" if link == " is " else self._one_of(OPENINGS)
        return self._ended(f"{opening}{a}{link}{words} {b}", 0.3)

    def one(self) -> str:
        """One object with its size, texture and place, and the background."""
        thing = self._one_of(self.scene.objects)
        words, where = self._thing(thing, size=True, texture=True), position(thing)
        if where is not None:
            words += " " + self._one_of(POSITIONS[where])
        if self._chance(0.4):
            return f"{self._place()}, {self._one_of(('', 'there is ', 'we see '))}{words}"
        return f"{self._one_of(OPENINGS)}{words}, {self._place()}"

    def looks(self) -> str:
        """Two objects, each with its size or texture."""
        things = []
        for thing in self._some(2):
            size = self._chance()
            things.append(self._thing(thing, size=size, texture=not size or self._chance()))
        joint = self._one_of((" and ", " and ", " together with "))
        return self._ended(self._one_of(OPENINGS) + joint.join(things), 0.5)

    def places(self) -> str:
        """Two objects and where each stands; their looks, where that is not clear."""
        placed = [thing for thing in self._some(3) if position(thing) is not None][:2]
        if len(placed) < 2:
            return self.looks()
        words = [self._thing(thing, size=self._chance(0.4), texture=self._chance(0.4)) for thing in placed]
        where = [self._one_of(POSITIONS[str(position(thing))]) for thing in placed]
        if self._chance(0.3):
            return f"{where[0]} there is {words[0]} and {where[1]} there is {words[1]}"
        link = self._one_of((" ", " is "))
        opening = self._one_of(OPENINGS) if link == " " else ""
        return f"{opening}{words[0]}{link}{where[0]} and {words[1]}{link}{where[1]}"

    def _thing(self, thing: SceneObject, size: bool, texture: bool) -> str:
        """An object by colour and shape, with its size and texture where asked: `a big striped red circle`."""
        before, after = self._one_of(TEXTURES[thing.texture]) if texture else ("", "")
        how_large = self._one_of(SIZES[thing.size]) if size else ""
        words = [how_large, before, thing.colour, self._one_of(SHAPES[thing.shape])]
        phrase = " ".join(word for word in words if word)
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}{after}"

    def _place(self) -> str:
        """The background: `on a grey background`, `in front of a meadow`."""
        name = self._one_of(BACKGROUNDS[self.scene.background])
        plain = self.scene.background in ("grey", "beige", "brown", "navy")
        return self._one_of(PLAIN_PLACES if plain else WIDE_PLACES).format(name)

    def _ended(self, caption: str, chance: float) -> str:
        """The caption, sometimes with the background at its end."""
        if not self._chance(chance):
            return caption
        place = self._place()
        return f"{caption}, {place}" if place.startswith("with ") else f"{caption} {place}"

    def _some(self, count: int) -> list[SceneObject]:
        """Up to `count` objects in random order."""
        return [self.scene.objects[i] for i in self.rng.permutation(len(self.scene.objects))[:count]]

    def _one_of(self, choices: Sequence):
        return choices[int(self.rng.integers(len(choices)))]

    def _chance(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)
