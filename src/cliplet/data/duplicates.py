"""Pictures that are copies of one another though their bytes differ. No torch.

A perceptual hash of 64 bits names candidates, those at most `DISTANCE` bits apart, without comparing every pair; a
second look at the two pictures, laid over each other, decides.

Found are copies that were saved anew, resized, squashed, made brighter or darker or grey, marked with a small sign,
or cut a little. Of Flickr8k's photographs: all that were saved at quality 40 or 15, at half, a third or twice the size,
at three quarters of the height, or in grey; 98 of 100 that lost 5 % of width and height evenly, 91 that lost 5 % at one
edge, 54 at two edges; 65 that lost 10 % evenly. Not found are mirrored and turned copies, strong crops, most frames put
around, collages, and pictures with little on them, an empty sky or a page of one colour. Photographs of one scene taken
a moment apart are not meant to be found; where nothing in them moved, they are. Of a million cut-outs of Flickr8k, nine
pairs were joined that are no copies: skies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from PIL import Image

SIDE = 32  # pixels of the square that is hashed, and of the one for the second look
COARSE = 8  # pixels of the square that is kept of every picture, to sort out most candidates
DISTANCE = 10  # bits; of photographs of different things, one pair in a million is as close
BAND_BITS = 16
# Bits that may differ in each of the hash's four bands, from the lowest: were there one more in each, the whole would
# differ by more than DISTANCE. The highest band has the smallest, because its first bit is always set.
RADII = (2, 2, 2, 1)
BLOCK = 2**17  # hashes compared at once: what it takes stays in the processor's cache

# The second look. Of Flickr8k's photographs, copies of the kinds above reach 0.8 in detail but for one in a hundred;
# of 6,000 pairs of different things with hashes as close none reached 0.6.
COARSE_ALIKE = 0.75  # least correlation of the squares of COARSE pixels, as they lie
DETAIL_ALIKE = 0.8  # of what stands in the cells of a grid, cell by cell, laid over each other
HOPELESS = 0.25  # in detail, after a step: copies are beyond it at once
COLOUR_ALIKE = 0.9  # of all colours, laid over each other
CELL = 8  # pixels of such a cell
FAINT = 2.0  # deviation below which a cell shows nothing
MIN_CELLS = 3  # that show something, of 16
GREY = 6.0  # mean difference of a pixel's colours below which a picture is a grey one
LOOKED_AT_ONCE = 512  # pairs
STEPS = 3  # of laying one over the other
SHIFT = 0.12  # of half a side: how far one may be shifted or stretched against the other

assert sum(radius + 1 for radius in RADII) > DISTANCE

_waves = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(SIDE) + 1) / (2 * SIDE))  # (8, SIDE): the lowest of a DCT
_bits_of_16 = np.array([bin(number).count("1") for number in range(2**16)], dtype=np.uint8)


def grey_square(image: Image.Image) -> np.ndarray:
    """(SIDE, SIDE) uint8: what is hashed of a picture."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hashes(greys: np.ndarray) -> np.ndarray:
    """(N,) uint64 of (N, SIDE, SIDE): which of the 8 x 8 lowest frequencies lie above their median.

    The first bit, of the mean, is the highest. Equal to `phash` of the package imagehash.
    """
    low = (_waves @ greys.astype(np.float64) @ _waves.T).reshape(len(greys), 64)
    low[np.abs(low) < 1e-6] = 0.0  # what rounding leaves of a picture of one colour is no frequency
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def coarse_squares(greys: np.ndarray) -> np.ndarray:
    """(N, COARSE, COARSE) uint8 of (N, SIDE, SIDE): means."""
    step = SIDE // COARSE
    means = greys.reshape(len(greys), COARSE, step, COARSE, step).mean(axis=(2, 4))
    return means.round().astype(np.uint8)


def bit_counts(numbers: np.ndarray) -> np.ndarray:
    """How many bits are set in each uint64."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(numbers)
    parts = np.ascontiguousarray(numbers).view(np.uint16).reshape(*numbers.shape, 4)
    return _bits_of_16[parts].sum(axis=-1, dtype=np.uint8)


def close_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of N different hashes that are at most DISTANCE bits apart, each once, as arrays (P, 2) of places.

    Two such hashes are within RADII of each other in one of four bands. So each is compared with those that share a
    band but for one or two bits: some thousands of a million.
    """
    for number, radius in enumerate(RADII):
        keys = _band(hashes, number)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], hashes[order]
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=2**BAND_BITS))])
        for size in range(radius + 1):
            for bits in combinations(range(BAND_BITS), size):
                for rows, partners in _compared(ordered, keys, starts, sum(1 << bit for bit in bits)):
                    new = ~_within_radii(ordered[rows] ^ ordered[partners], number)
                    if new.any():
                        yield order[np.stack([rows[new], partners[new]], axis=1)]


def _band(numbers: np.ndarray, number: int) -> np.ndarray:
    return ((numbers >> np.uint64(BAND_BITS * number)) & np.uint64(2**BAND_BITS - 1)).astype(np.int64)


def _within_radii(differences: np.ndarray, bands: int) -> np.ndarray:
    """Whether one of the first `bands` bands has found the pair already."""
    found = np.zeros(len(differences), dtype=bool)
    for number in range(bands):
        found |= _bits_of_16[_band(differences, number)] <= RADII[number]
    return found


def _compared(
    ordered: np.ndarray, keys: np.ndarray, starts: np.ndarray, mask: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs whose keys differ by exactly the mask's bits and whose hashes are close, as places in `ordered`."""
    if mask:
        rows = np.flatnonzero(keys & (1 << (mask.bit_length() - 1)) == 0)  # each pair from one of its sides
        first = starts[keys[rows] ^ mask]
        counts = starts[(keys[rows] ^ mask) + 1] - first
    else:
        rows = np.arange(len(keys))
        first = rows + 1
        counts = starts[keys + 1] - first
    ends = np.cumsum(counts)
    shift = first - (ends - counts)
    done = 0
    while done < len(rows):
        before = int(ends[done] - counts[done])
        stop = max(done + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        block = slice(done, stop)
        partners = np.repeat(shift[block], counts[block])
        partners += np.arange(before, before + len(partners))
        differences = np.repeat(ordered[rows[block]], counts[block])
        differences ^= ordered[partners]
        close = np.flatnonzero(bit_counts(differences) <= DISTANCE)
        if len(close):
            yield rows[block][np.searchsorted(ends[block] - before, close, side="right")], partners[close]
        done = stop


def coarse_alike(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P,) whether pairs of coarse squares (P, COARSE, COARSE) may be of copies."""
    return _correlation(ones, others) >= COARSE_ALIKE


def same_pictures(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P,) whether pairs of thumbnails, (P, SIDE, SIDE, 3) uint8, show the same picture.

    Each is laid over the other as well as brightness, contrast, shift and stretch allow; then what stands in the cells
    of a grid must agree cell by cell, without what a smooth sky has in common with any other, and so must the colours,
    but for copies in grey.
    """
    blocks = (slice(start, start + LOOKED_AT_ONCE) for start in range(0, len(ones), LOOKED_AT_ONCE))
    found = [_same(ones[block].astype(np.float32), others[block].astype(np.float32)) for block in blocks]
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def _same(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    grey_ones, grey_others = _grey(ones), _grey(others)
    one_is_grey = _is_grey(ones) | _is_grey(others)
    same = (_detail_alike(grey_ones, grey_others) >= DETAIL_ALIKE) & (one_is_grey | _colours_agree(ones, others))
    for a, b, grey_a, grey_b in ((ones, others, grey_ones, grey_others), (others, ones, grey_others, grey_ones)):
        left = np.flatnonzero(~same)
        place = np.zeros((len(left), 4), dtype=np.float32)  # shift and stretch across, shift and stretch down
        moved = grey_a[left]
        for _ in range(STEPS):
            place = np.clip(place + _correction(moved, grey_b[left]), -SHIFT, SHIFT)
            moved = _moved(grey_a[left], place)
            detail = _detail_alike(moved, grey_b[left])
            colours = one_is_grey[left] | _colours_agree(_moved(a[left], place), b[left])
            same[left] |= (detail >= DETAIL_ALIKE) & colours
            going = (detail >= HOPELESS) & ~same[left]
            left, place, moved = left[going], place[going], moved[going]
    return same


def _grey(pictures: np.ndarray) -> np.ndarray:
    """(P, S, S, 1) of (P, S, S, 3)."""
    return pictures @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)


def _is_grey(pictures: np.ndarray) -> np.ndarray:
    return np.ptp(pictures, axis=3).mean(axis=(1, 2)) < GREY


def _colours_agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _correlation(a, b) >= COLOUR_ALIKE


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(len(x), np.prod(x.shape[1:])).astype(np.float32) for x in (a, b))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("pn,pn->p", a, a) * np.einsum("pn,pn->p", b, b))
    return np.einsum("pn,pn->p", a, b) / np.maximum(norms, 1e-6)


def _detail_alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) mean correlation of the cells of (P, S, S, 1) that show something; 0 where too few do."""
    a, b = _details(a), _details(b)
    var_a, var_b = np.square(a).mean(axis=2), np.square(b).mean(axis=2)
    shown = np.maximum(var_a, var_b) > FAINT**2
    alike = (a * b).mean(axis=2) / np.sqrt(var_a * var_b + 1e-3) * shown
    cells = shown.sum(axis=1)
    return np.where(cells >= MIN_CELLS, alike.sum(axis=1) / np.maximum(cells, 1), 0).astype(np.float32)


def _details(pictures: np.ndarray) -> np.ndarray:
    """(P, cells, CELL * CELL): each cell without its mean and its slope, which smooth pictures share."""
    count = pictures.shape[1] // CELL
    cells = pictures.reshape(len(pictures), count, CELL, count, CELL).transpose(0, 1, 3, 2, 4)
    cells = cells.reshape(len(pictures), count * count, CELL * CELL)
    along = np.linspace(-1, 1, CELL, dtype=np.float32)
    plane = np.stack([np.ones(CELL * CELL, dtype=np.float32), np.tile(along, CELL), np.repeat(along, CELL)])
    plane /= np.linalg.norm(plane, axis=1, keepdims=True)
    return cells - cells @ plane.T @ plane


def _correction(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, 4): the shifts and stretches that bring `a` nearer to `b`, by least squares with brightness and contrast."""
    pairs, side = a.shape[:2]
    across = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)[None, None, :, None]
    down = across.transpose(0, 2, 1, 3)
    slope_x, slope_y = (np.gradient(a, axis=axis) * (side / 2) for axis in (2, 1))
    parts = [a, np.ones_like(a), slope_x, slope_x * across, slope_y, slope_y * down]
    terms = np.stack([part.reshape(pairs, side * side) for part in parts], axis=1)  # (P, 6, S * S)
    normal = terms @ terms.transpose(0, 2, 1)
    normal += np.eye(6, dtype=np.float32) * (1e-4 * normal.diagonal(axis1=1, axis2=2)[:, None] + 1e-3)
    solved = np.linalg.solve(normal, terms @ b.reshape(pairs, side * side, 1))[..., 0]
    return solved[:, 2:] / np.where(np.abs(solved[:, :1]) < 0.1, 0.1, solved[:, :1])


def _moved(pictures: np.ndarray, place: np.ndarray) -> np.ndarray:
    return _sampled(_sampled(pictures, place[:, 0], place[:, 1], 2), place[:, 2], place[:, 3], 1)


def _sampled(pictures: np.ndarray, shift: np.ndarray, stretch: np.ndarray, axis: int) -> np.ndarray:
    """Pictures shifted and stretched along an axis, in half sides; what would lie outside repeats the edge."""
    side = pictures.shape[axis]
    along = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    at = (along * (1 + stretch[:, None]) + shift[:, None] + 1) / 2 * side - 0.5
    at = at.clip(0, side - 1)
    below = np.minimum(at.astype(np.int64), side - 2)
    shape = (len(at), 1, side, 1) if axis == 2 else (len(at), side, 1, 1)
    share, below = (at - below).astype(np.float32).reshape(shape), below.reshape(shape)
    low, high = (np.take_along_axis(pictures, below + step, axis=axis) for step in (0, 1))
    return low + (high - low) * share
