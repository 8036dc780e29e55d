"""Hashes as others make them, every close pair and no other, and a second look that is not fooled."""

import io
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from cliplet.data import duplicates
from cliplet.data.duplicates import (
    COARSE,
    DISTANCE,
    SIDE,
    bit_counts,
    close_pairs,
    coarse_alike,
    coarse_squares,
    grey_square,
    perceptual_hashes,
    same_pictures,
)  # fmt: skip


@cache
def photo(seed, size=(160, 120)):
    """A picture with structure at every scale, as photographs have it, and some edges."""
    random = np.random.default_rng(seed)
    width, height = size
    across, down = np.fft.fftfreq(width)[None, :], np.fft.fftfreq(height)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / max(size)) ** 1.4
    waves = falling[..., None] * np.exp(2j * np.pi * random.random((height, width, 3)))
    field = np.fft.ifft2(waves, axes=(0, 1)).real
    shared = field.mean(axis=2, keepdims=True)
    field = shared + 0.5 * (field - shared)
    field = 128 + 50 * (field - field.mean()) / field.std()
    image = Image.fromarray(field.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = random.integers(0, width - 40), random.integers(0, height - 40)
        right, below = (x + int(random.integers(8, 50)), y + int(random.integers(8, 50)))
        draw.rectangle((x, y, right, below), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def saved(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image, share):
    """Without a share of the whole width and height, evenly from all sides."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


def small(image):
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def hash_of(image):
    return perceptual_hashes(grey_square(image)[None])[0]


COPIES = {
    "saved anew": lambda image: saved(image, 40),
    "smaller": lambda image: image.resize((80, 60), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((500, 375), Image.Resampling.BICUBIC),
    "squashed": lambda image: image.resize((224, 224), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "cropped": lambda image: cropped(image, 0.04),
}


def test_hashes_are_those_of_imagehash():
    imagehash = pytest.importorskip("imagehash", reason="imagehash is not installed: its hashes are not compared")
    images = [photo(seed, size) for seed in range(8) for size in ((160, 120), (48, 90), (64, 64))]
    images += [image.convert(mode) for image in images[:3] for mode in ("L", "RGBA", "CMYK")]
    theirs = [int(str(imagehash.phash(image)), 16) for image in images]
    assert [int(hash_of(image)) for image in images] == theirs


def test_a_picture_of_one_colour_has_a_hash_without_noise():
    hashes = {int(hash_of(Image.new("RGB", (50, 40), colour))) for colour in ("white", "red", (1, 2, 3), "grey")}
    assert hashes == {1 << 63}
    assert hash_of(Image.new("RGB", (50, 40), "black")) == 0


def test_coarse_squares_are_means():
    grey = np.repeat(np.repeat(np.arange(64).reshape(COARSE, COARSE), 4, axis=0), 4, axis=1).astype(np.uint8)
    assert np.array_equal(coarse_squares(grey[None])[0], np.arange(64).reshape(COARSE, COARSE))


def flipped(number, bits):
    for bit in bits:
        number ^= 1 << int(bit)
    return number


def test_close_pairs_are_all_there_are_each_once():
    random = np.random.default_rng(0)
    numbers = [int(number) for number in random.integers(0, 2**64, 150, dtype=np.uint64)]
    for number in list(numbers):
        numbers += [flipped(number, random.choice(64, size, replace=False)) for size in random.integers(1, 16, 6)]
    hashes = np.unique(np.array(numbers, dtype=np.uint64))
    distances = bit_counts(hashes[:, None] ^ hashes[None, :])
    expected = {(int(i), int(j)) for i, j in zip(*np.nonzero(distances <= DISTANCE), strict=True) if i < j}
    found = [tuple(sorted(pair)) for pairs in close_pairs(hashes) for pair in pairs.tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected and len(expected) > 1000


def test_close_pairs_are_found_however_their_bits_lie():
    splits = {
        order for parts in ((3, 3, 2, 2), (3, 3, 3, 1), (4, 3, 3, 0), (10, 0, 0, 0)) for order in permutations(parts)
    }
    for parts in splits:
        bits = [16 * band + 3 * place % 16 for band, count in enumerate(parts) for place in range(count)]
        hashes = np.array([12345, flipped(12345, bits)], dtype=np.uint64)
        assert sum(map(len, close_pairs(hashes))) == 1, parts


def test_close_pairs_in_small_blocks_and_without_any(monkeypatch):
    hashes = np.unique(np.random.default_rng(1).integers(0, 2**20, 400, dtype=np.uint64))
    whole = sorted(tuple(sorted(pair)) for pairs in close_pairs(hashes) for pair in pairs.tolist())
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    blocks = sorted(tuple(sorted(pair)) for pairs in close_pairs(hashes) for pair in pairs.tolist())
    assert blocks == whole and len(whole) > 1000
    assert list(close_pairs(np.zeros(0, np.uint64))) == []


def test_bits_are_counted_without_numpy_2(monkeypatch):
    numbers = np.random.default_rng(2).integers(0, 2**64, (5, 7), dtype=np.uint64)
    expected = [[int(number).bit_count() if hasattr(int, "bit_count") else bin(number).count("1") for number in row]
                for row in numbers]  # fmt: skip
    assert bit_counts(numbers).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert bit_counts(numbers).tolist() == expected


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_seen_to_be_copies(kind):
    originals = [photo(seed) for seed in range(12)]
    copies = [COPIES[kind](image) for image in originals]
    ones, others = (np.stack([small(image) for image in images]) for images in (originals, copies))
    assert same_pictures(ones, others).mean() > 0.9
    assert same_pictures(others, ones).mean() > 0.9
    squares = [coarse_squares(np.stack([grey_square(image) for image in images])) for images in (originals, copies)]
    assert coarse_alike(*squares).mean() > 0.9
    distances = [int(bit_counts(hash_of(a) ^ hash_of(b))) for a, b in zip(originals, copies, strict=True)]
    assert np.mean(np.array(distances) <= DISTANCE) > 0.9


def test_pictures_are_laid_over_each_other_before_they_are_compared():
    originals = [photo(seed) for seed in range(12)]
    cut = [image.crop((14, 0, image.width, image.height - 6)) for image in originals]
    ones, others = (np.stack([small(image) for image in images]) for images in (originals, cut))
    assert same_pictures(ones, others).mean() > 0.8
    assert same_pictures(others, ones).mean() > 0.8


def test_noise_where_nothing_is_shown_does_not_count():
    noisy = []
    for seed in (0, 1):
        image = Image.new("RGB", (96, 96), "#e8e8e8")
        ImageDraw.Draw(image).text((4, 30), "a sign", fill="black", font_size=28)
        pixels = small(image).astype(float) + np.random.default_rng(seed).normal(0, 1.2, (SIDE, SIDE, 1))
        noisy.append(pixels.round().clip(0, 255).astype(np.uint8)[None])
    assert same_pictures(*noisy).all()


def test_other_pictures_are_none():
    pictures = np.stack([small(photo(seed)) for seed in range(24)])
    assert not same_pictures(pictures[:12], pictures[12:]).any()
    assert not same_pictures(pictures, pictures[:, :, ::-1]).any(), "mirrored"
    strong = np.stack([small(cropped(photo(seed), 0.4)) for seed in range(12)])
    assert not same_pictures(pictures[:12], strong).any(), "strongly cropped"


def test_the_same_shapes_in_other_colours_are_another_picture():
    pictures = np.stack([small(photo(seed)) for seed in range(10)])
    assert not same_pictures(pictures, pictures[..., [2, 0, 1]]).any()
    drawn = []
    for colour in ("#d62628", "#2654d6"):
        image = Image.new("RGB", (96, 96), "#969698")
        ImageDraw.Draw(image).ellipse((20, 20, 60, 60), fill=colour)
        drawn.append(small(image)[None])
    assert not same_pictures(*drawn).any()


def test_smooth_skies_with_one_edge_tell_nothing():
    down = np.linspace(250, 120, SIDE)[:, None, None] * np.ones((1, SIDE, 3))
    skies = []
    for colour, level in (((0.6, 0.8, 1.0), 26), ((0.5, 0.7, 1.0), 26)):
        sky = down * np.array(colour)
        sky[level:] = 60
        skies.append(sky.astype(np.uint8))
    hills = skies[1].copy()
    hills[22:26, 3:9] = 90
    assert np.corrcoef(skies[0].ravel(), hills.ravel())[0, 1] > 0.9, "as pictures they are alike"
    assert not same_pictures(skies[0][None], hills[None]).any()


def test_no_pairs_no_answers():
    nothing = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    assert same_pictures(nothing, nothing).tolist() == []
    assert coarse_alike(np.zeros((0, COARSE, COARSE)), np.zeros((0, COARSE, COARSE))).tolist() == []
    assert perceptual_hashes(np.zeros((0, SIDE, SIDE), np.uint8)).tolist() == []
