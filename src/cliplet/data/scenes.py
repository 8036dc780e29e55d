"""Rendered scenes with captions: the embedded data set, made in seconds and the same from the same seed.

A picture shows two or three of 8 shapes in 8 colours, 2 sizes and 4 textures on one of 8 backgrounds, and has
five captions that are true of it (`scene_captions`). Captions say left and right: train with `augment.flip` 0.

Some pairs of shape and colour, `HELD_OUT`, never occur in the splits `train` and `val`, though each of the shapes
and each of the colours does; every picture of `test` shows at least one such pair. So a good recall on `test`
shows that a model has learned shapes and colours, not combinations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from math import hypot
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from cliplet.data.scene_captions import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject, describe
from cliplet.errors import DataError

ANNOTATIONS = "dataset_scenes.json"
SPLITS = ("train", "val", "test")
VERSION = 1  # of the pictures and captions; another one makes a finished folder be rendered anew
MARK = b"cliplet scene"  # stands in every picture, so that no file of another origin is overwritten
SAMPLES = 3  # drawn this many times larger in each direction, then averaged

PAIRS = frozenset(product(SHAPES, COLOURS))
# Two colours of every shape, and so two shapes of every colour: 16 of 64 pairs.
HELD_OUT = frozenset((shape, COLOURS[(i + step) % 8]) for i, shape in enumerate(SHAPES) for step in (0, 3))
RADIUS = {"small": (0.095, 0.11), "large": (0.175, 0.195)}  # shares of the picture's side
REACH = 1.15  # the corners of a square and the tips of a heart stand out over the radius by less than this

RGB = tuple[int, int, int]
Job = tuple[str, int]  # a picture to render: its split and its number there
PAINT: dict[str, tuple[RGB, RGB]] = {  # of the object, and of the stripes, dots or checks on it
    "red": ((214, 38, 40), (120, 10, 14)),
    "green": ((38, 150, 58), (12, 78, 26)),
    "blue": ((38, 84, 214), (150, 190, 255)),
    "yellow": ((250, 220, 40), (176, 140, 0)),
    "purple": ((132, 44, 168), (214, 160, 236)),
    "orange": ((248, 134, 20), (160, 72, 0)),
    "white": ((248, 248, 248), (164, 164, 164)),
    "black": ((22, 22, 22), (128, 128, 128)),
}
# Height in the picture (0 is the top) and colour there, interpolated between; muted, so that objects stand out.
STOPS: dict[str, tuple[tuple[float, RGB], ...]] = {
    "grey": ((0, (150, 150, 152)),),
    "beige": ((0, (226, 212, 178)),),
    "brown": ((0, (122, 94, 74)),),
    "navy": ((0, (38, 48, 84)),),
    "meadow": ((0, (150, 184, 208)), (0.5, (196, 214, 222)), (0.51, (134, 164, 106)), (1, (104, 138, 84))),
    "beach": ((0, (186, 208, 216)), (0.4, (112, 164, 178)), (0.5, (84, 142, 162)), (0.51, (214, 196, 152))),
    "sunset": ((0, (92, 78, 122)), (0.55, (206, 138, 128)), (1, (234, 190, 142))),
    "snow": ((0, (140, 152, 170)), (0.5, (176, 186, 200)), (0.51, (224, 230, 236)), (1, (212, 220, 230))),
}


def render_scenes(
    folder: str | Path,
    train: int = 3500,
    val: int = 500,
    test: int = 500,
    seed: int = 0,
    image_size: int = 96,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders the data set into `folder`; gives its annotation file, which `read_source` reads, as it does `folder`.

    `train`, `val`, `test`: pictures of each split. `image_size`: their side in pixels. `workers`: processes;
    by itself this one alone, about 2 ms a picture (more start anew, and need a main module that is guarded by
    `if __name__ == "__main__"`). `progress(done, total)` is called after each picture.

    Writes images/SPLIT_NUMBER.png and, last of all, dataset_scenes.json in Karpathy's format, which also holds each
    picture's `scene` and, under `scenes`, the arguments. The same arguments give the same bytes, whatever the number
    of workers (by the same versions of numpy and Pillow); a folder that holds them already is left as it is. An
    interrupted rendering has no annotation file and is made anew, as is one with other arguments; surplus pictures
    of an earlier one stay, unnamed.

    Raises DataError for arguments out of range, and where a file of another origin would be overwritten.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    workers = 1 if workers is None else workers
    if min(*counts.values(), seed) < 0 or not sum(counts.values()) or workers < 1 or not 32 <= image_size <= 2048:
        raise DataError(
            f"cannot render {counts} pictures of {image_size} pixels from seed {seed} with {workers} workers",
            "Counts and seed must not be negative; a picture or more, of 32 to 2048 pixels, and a worker are needed.",
        )
    arguments = {"version": VERSION, **counts, "seed": seed, "image_size": image_size}
    root = Path(folder).expanduser()
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file, where a folder is needed", "Name another folder.")
    annotations, total = root / ANNOTATIONS, sum(counts.values())
    jobs = [(split, index) for split in SPLITS for index in range(counts[split])]
    if _arguments_of(annotations) == arguments and _names(root).issuperset(_name(*job) for job in jobs):
        return annotations
    annotations.unlink(missing_ok=True)  # from here on the folder is unfinished, and shows it
    (root / "images").mkdir(parents=True, exist_ok=True)
    images = []
    with ExitStack() as stack:
        rendered = _mapped(partial(_render, root, seed, image_size), jobs, workers, stack)
        for done, image in enumerate(rendered, start=1):
            images.append(_annotation(image, done - 1))
            if progress:
                progress(done, total)
    data = {"dataset": "scenes", "scenes": arguments, "images": images}
    _write(annotations, json.dumps(data, separators=(",", ":")).encode())
    return annotations


def _mapped(render: Callable[[Job], dict], jobs: list[Job], workers: int, stack: ExitStack) -> Iterable[dict]:
    """What `render` gives for each job, in their order; a pool of processes, if there is one, ends with the stack."""
    if workers == 1:
        return map(render, jobs)
    # Threads were measured to be slower than one alone: there are too many short calls under the lock. Forks would
    # inherit the locks of whatever threads (torch's, say) the caller has.
    pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
    return pool.map(render, jobs, chunksize=16)


def sample_scene(split: str, rng: np.random.Generator) -> Scene:
    """A scene of a split: held-out pairs never for `train` and `val`, at least one for `test`."""
    kinds = _kinds(split, 2 if rng.random() < 0.4 else 3, rng)
    sizes = [_one_of(SIZES, rng) for _ in kinds]
    textures = [_one_of(TEXTURES, rng) for _ in kinds]
    places = None
    while places is None:
        places = _places([float(rng.uniform(*RADIUS[size])) for size in sizes], rng)
    things = zip(kinds, sizes, textures, places, strict=True)
    objects = (SceneObject(shape, colour, size, texture, *place) for (shape, colour), size, texture, place in things)
    return Scene(_one_of(BACKGROUNDS, rng), tuple(objects))


def draw_scene(scene: Scene, rng: np.random.Generator, image_size: int = 96) -> Image.Image:
    """A scene as an RGB picture, antialiased; `rng` turns the objects a little and varies all colours."""
    picture = _background(scene.background, image_size, rng)
    for thing in scene.objects:
        half = int(thing.radius * REACH * image_size) + 2
        left, top = round(thing.x * image_size) - half, round(thing.y * image_size) - half
        tile = _object(thing, 2 * half, (thing.x * image_size - left, thing.y * image_size - top), image_size, rng)
        picture.paste(tile, (left, top), tile)
    return picture


def _render(root: Path, seed: int, image_size: int, job: Job) -> dict[str, Any]:
    """Writes one picture; gives what the annotation file says of it but for its number."""
    split, index = job
    # A generator of its own for each picture: it does not depend on which worker draws it, or when.
    rng = np.random.default_rng(np.random.SeedSequence((seed, SPLITS.index(split), index)))
    scene = sample_scene(split, rng)
    file = root / "images" / _name(split, index)
    if file.exists() and MARK not in file.read_bytes()[:200]:
        raise DataError(f"{file}: would be overwritten, and is not a rendered scene", "Choose another folder.")
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", MARK.decode())
    part = _beside(file)
    draw_scene(scene, rng, image_size).save(part, format="PNG", pnginfo=text, compress_level=3)
    os.replace(part, file)
    return {"filename": file.name, "split": split, "captions": describe(scene, rng), "scene": asdict(scene)}


def _annotation(image: dict[str, Any], imgid: int) -> dict[str, Any]:
    """One picture's entry in Karpathy's format."""
    captions = image.pop("captions")
    sentids = [imgid * len(captions) + i for i in range(len(captions))]
    sentences = [
        {"raw": raw, "tokens": raw.replace(",", "").replace(":", "").split(), "imgid": imgid, "sentid": sentid}
        for raw, sentid in zip(captions, sentids, strict=True)
    ]
    return {**image, "imgid": imgid, "sentids": sentids, "sentences": sentences}


def _name(split: str, index: int) -> str:
    return f"{split}_{index:05d}.png"


def _names(root: Path) -> set[str]:
    """File names in the folder of the pictures."""
    return set(os.listdir(root / "images")) if (root / "images").is_dir() else set()


def _arguments_of(annotations: Path) -> dict[str, Any] | None:
    """The arguments of a finished rendering; None where there is none. DataError for a file of another origin."""
    if not annotations.exists():
        return None
    try:
        return dict(json.loads(annotations.read_bytes())["scenes"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{annotations}: is there, and is not of rendered scenes", "Choose another folder.") from None


def _write(file: Path, data: bytes) -> None:
    """Written beside and renamed: whoever opens the file finds it whole."""
    part = _beside(file)
    part.write_bytes(data)
    os.replace(part, file)


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}.part")


def _one_of(choices: Iterable[str], rng: np.random.Generator) -> str:
    names = list(choices)
    return names[int(rng.integers(len(names)))]


def _kinds(split: str, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """`count` different pairs of shape and colour, in random order."""
    held_out, seen = sorted(HELD_OUT), sorted(PAIRS - HELD_OUT)
    chosen = [held_out[int(rng.integers(len(held_out)))]] if split == "test" else []
    others = [pair for pair in (sorted(PAIRS) if split == "test" else seen) if pair not in chosen]
    chosen += [others[i] for i in rng.choice(len(others), count - len(chosen), replace=False)]
    return [chosen[i] for i in rng.permutation(count)]


def _places(radii: list[float], rng: np.random.Generator) -> list[tuple[float, float, float]] | None:
    """A centre for each radius, as (x, y, radius), such that nothing touches; None if the last ones find no room."""
    placed: list[tuple[float, float, float]] = []
    for radius in radii:
        border = radius * REACH + 0.02
        for x, y in rng.uniform(border, 1 - border, (20, 2)).round(4).tolist():
            if all(hypot(x - other[0], y - other[1]) > (radius + other[2]) * REACH + 0.02 for other in placed):
                placed.append((x, y, round(radius, 4)))
                break
        else:
            return None
    return placed


def _background(name: str, image_size: int, rng: np.random.Generator) -> Image.Image:
    """Horizontal bands that run into each other by `STOPS`, with the horizon and the colours varied a little."""
    heights, colours = (np.array(column, float) for column in zip(*STOPS[name], strict=True))
    shift = rng.uniform(-0.08, 0.08) * ((heights > 0) & (heights < 1))
    colours = colours + _tint(rng)
    rows = (np.arange(image_size) + 0.5) / image_size
    column = np.stack([np.interp(rows, heights + shift, channel) for channel in colours.T], axis=1)
    pixels = np.broadcast_to(column[:, None], (image_size, image_size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _object(
    thing: SceneObject, side: int, centre: tuple[float, float], image_size: int, rng: np.random.Generator
) -> Image.Image:
    """An object as an RGBA tile of `side` pixels; `centre` is its place in the tile, in pixels."""
    angle = rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array(centre) * SAMPLES
    outlines = [points @ turn * (thing.radius * image_size * SAMPLES) + middle for points in _outlines(thing.shape)]
    mask = Image.new("L", (side * SAMPLES, side * SAMPLES))
    draw = ImageDraw.Draw(mask)
    for points, fill in zip(outlines, (255, 0), strict=False):  # the second outline, if there is one, is a hole
        draw.polygon([tuple(point) for point in points], fill=fill)
    tile = _texture(thing, side, middle, turn, image_size, rng)
    tile.putalpha(mask)
    draw = ImageDraw.Draw(tile)
    width = max(SAMPLES, round(image_size * SAMPLES / 80))
    edge = (225, 225, 225, 255) if thing.colour == "black" else (25, 25, 25, 255)
    for points in outlines:
        joint = "curve" if len(points) < 20 else None  # needed where there are corners, and slow
        draw.line([tuple(point) for point in (*points, points[0], points[1])], edge, width, joint)
    return tile.reduce(SAMPLES)


def _texture(
    thing: SceneObject, side: int, middle: np.ndarray, turn: np.ndarray, image_size: int, rng: np.random.Generator
) -> Image.Image:
    """The colours of an object, with or without a pattern, as an RGB square of side * SAMPLES pixels."""
    tint = _tint(rng)
    paint, ink = ((np.array(colour) + tint).clip(0, 255).astype(np.uint8) for colour in PAINT[thing.colour])
    tile = Image.new("RGB", (side * SAMPLES, side * SAMPLES), tuple(paint.tolist()))
    if thing.texture == "plain":
        return tile
    # Finer on what is small, so that a small star still shows more than one dot.
    period = image_size * SAMPLES * rng.uniform(0.068, 0.076) * (0.8 if thing.size == "small" else 1)
    grid = np.arange(side * SAMPLES, dtype=np.float32)
    across, down = grid[None] - np.float32(middle[0]), grid[:, None] - np.float32(middle[1])
    # Coordinates of the pattern, turned with the object, in periods from the middle of a dot.
    u, v = (across * np.float32(x / period) + down * np.float32(y / period) for x, y in turn)
    u, v = u - np.floor(u + 0.5), v - np.floor(v + 0.5)
    if thing.texture == "striped":
        inked = np.abs(u) < 0.21
    elif thing.texture == "dotted":
        inked = u * u + v * v < 0.1
    else:
        inked = (u < 0) ^ (v < 0)
    tile.paste(tuple(ink.tolist()), mask=Image.fromarray(inked.view(np.uint8) * np.uint8(255)))
    return tile


def _tint(rng: np.random.Generator) -> np.ndarray:
    """What is added to R, G and B (3): mostly light or dark, for a grey must stay a grey."""
    return rng.uniform(-9, 9) + rng.uniform(-4, 4, 3)


@cache
def _outlines(shape: str) -> tuple[np.ndarray, ...]:
    """Corners (N, 2) of a shape of radius 1 about (0, 0), y downwards, and of the hole in it if it has one."""
    circle = _round(np.ones(48))
    if shape == "ring":
        return circle, circle * 0.45
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return (np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 15.5,)
    corners = {
        "circle": circle,
        "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8,
        "triangle": _round(np.ones(3)) * 1.12 + (0, 0.15),
        "star": _round(np.tile((1.12, 0.48), 5)),
        "cross": np.array(list(_cross())),
        "diamond": np.array([(0, -1.12), (0.74, 0), (0, 1.12), (-0.74, 0)]),
    }
    return (corners[shape],)


def _round(radii: np.ndarray) -> np.ndarray:
    """Points (N, 2) at even angles and the given radii, the first one on top."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * radii[:, None]


def _cross(long: float = 1.0, short: float = 0.36) -> Iterator[tuple[float, float]]:
    """The twelve corners of a plus sign."""
    for x, y in ((1, -1), (1, 1), (-1, 1), (-1, -1)):
        arm = [(x * short, y * long), (x * short, y * short), (x * long, y * short)]
        yield from arm if x * y < 0 else reversed(arm)
