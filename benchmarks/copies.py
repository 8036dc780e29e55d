"""How many copies `cliplet inspect` finds, and how many pairs it names that are none.

    python benchmarks/copies.py FOLDER [--pictures 900]

FOLDER holds photographs. The first of them, by name, are saved anew in each way, and each way is inspected together
with the originals: the originals as train, the copies as test. A copy counts as found where it is paired with its own
original; any other pair is printed, for the photographs themselves may hold copies.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from cliplet.data.inspection import survey_source, with_copies
from cliplet.data.records import ImageText, ImageTextSource, Records

Change = Callable[[Image.Image], Image.Image]


def resized(across: float, down: float) -> Change:
    return lambda image: image.resize((round(image.width * across), round(image.height * down)), Image.BICUBIC)


def cut(left: float, top: float, right: float, bottom: float) -> Change:
    """Shares of the sides that are cut off."""
    return lambda image: image.crop(
        (
            round(left * image.width),
            round(top * image.height),
            round((1 - right) * image.width),
            round((1 - bottom) * image.height),
        )
    )


def watermarked(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((image.width // 20, image.height * 9 // 10), "example.org", fill=(255, 255, 255))
    return image


WAYS: dict[str, tuple[Change, int]] = {  # and the quality of the JPEG
    "quality 40": (lambda image: image, 40),
    "quality 15": (lambda image: image, 15),
    "half the size": (resized(0.5, 0.5), 90),
    "three times the size": (resized(3, 3), 90),
    "aspect ratio x0.75": (resized(0.75, 1), 90),
    "aspect ratio x0.6": (resized(0.6, 1), 90),
    "grey": (lambda image: ImageOps.grayscale(image), 90),
    "brightness x0.7": (lambda image: ImageEnhance.Brightness(image).enhance(0.7), 90),
    "brightness x1.2": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 90),
    "brightness x1.4": (lambda image: ImageEnhance.Brightness(image).enhance(1.4), 90),
    "contrast x1.3": (lambda image: ImageEnhance.Contrast(image).enhance(1.3), 90),
    "watermark": (watermarked, 90),
    "5 % cut off, evenly": (cut(0.025, 0.025, 0.025, 0.025), 90),
    "5 % cut off, one edge": (cut(0.05, 0, 0, 0), 90),
    "5 % cut off, two edges": (cut(0.05, 0.05, 0, 0), 90),
    "10 % cut off, evenly": (cut(0.05, 0.05, 0.05, 0.05), 90),
    "border of 3 %": (lambda image: ImageOps.expand(image, round(0.03 * image.width), "white"), 90),
    "mirrored": (ImageOps.mirror, 90),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=900)
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.jpg"))[: options.pictures]
    others: set[tuple[str, str]] = set()
    for name, (change, quality) in WAYS.items():
        with tempfile.TemporaryDirectory() as scratch:
            for file in files:
                change(Image.open(file).convert("RGB")).save(Path(scratch) / file.name, quality=quality)
            records = [ImageText(str(file), ("a photograph",), "train") for file in files]
            records += [ImageText(str(Path(scratch) / file.name), ("a copy",), "test") for file in files]
            survey = with_copies(survey_source(ImageTextSource("benchmark", "list", Records.of(records))))
            found = 0
            for one, other in survey.copies:
                names = sorted(Path(survey.place(int(place))).name for place in (one, other))
                if names[0] == names[1]:
                    found += 1
                else:
                    others.add((names[0], names[1]))
        print(f"{name:<24}{100 * found / len(files):6.1f} %", flush=True)
    print(f"other pairs: {len(others)}", *(f"  {one} {other}" for one, other in sorted(others)), sep="\n")


if __name__ == "__main__":
    main()
