"""Embeddings in a file: cliplet's own .npz, and those that other programs wrote. N pictures, M captions, D width.

image         (N, D) float32, a row a picture
text          (M, D) float32, a row a caption
caption_image (M,) int64, the picture's row of each caption
description   (bytes,) uint8, JSON in UTF-8: format, format_version, pictures (N names), captions (M texts),
              left_out (names of pictures that could not be read), facts

Names and captions lie in the file, so its rows find their pictures in any copy of the data, whatever its order. A file
of another program has two arrays and no names; its rows are taken to be in the data's own order.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.console import counted
from cliplet.data.places import file_name
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError
from cliplet.evaluation.measure import Evaluation, assembled
from cliplet.files import written_beside

FORMAT, FORMAT_VERSION = "cliplet-embeddings", 1
PAIRS = (  # what other programs call the two arrays
    ("image", "text"),
    ("images", "texts"),
    ("image_features", "text_features"),
    ("image_embeddings", "text_embeddings"),
    ("image_embeds", "text_embeds"),
)
READ = {"caption_image", "description", *chain(*PAIRS)}
UNIT = 1e-5  # a row whose length is this near to one is left as it is, so that its ranks stay the same


@dataclass(frozen=True)
class StoredEmbeddings:
    """What a file of embeddings holds. Rows are finite and of unit length."""

    source: str
    image_ND: np.ndarray
    text_MD: np.ndarray
    caption_image_M: np.ndarray | None = None  # None, like the names, in a file of another program
    pictures: tuple[str, ...] = ()  # names of the rows of image_ND
    captions: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # pictures that could not be read when the file was made
    logit_scale: float | None = None  # what the model multiplies cosines by, if that is one number
    facts: Mapping[str, Any] = field(default_factory=dict)
    rescaled: int = 0  # rows that were not of unit length


def is_embeddings(source: str | Path) -> bool:
    """Whether a name is one of embeddings: FILE.npz, or IMAGES.npy+TEXTS.npy."""
    text = str(source).lower()
    return text.endswith(".npz") or (text.endswith(".npy") and ".npy+" in text)


def files_of(source: str | Path) -> tuple[str, ...]:
    """The one file or the two that a name of `is_embeddings` names."""
    text = str(source)
    if text.lower().endswith(".npz"):
        return (text,)
    place = text.lower().index(".npy+") + len(".npy")
    return text[:place], text[place + 1 :]


def save_embeddings(
    file: str | Path, evaluation: Evaluation, facts: Mapping[str, Any], records: Sequence[ImageText] = ()
) -> None:
    """Writes what was measured. `facts`: JSON of the model, the data, its split, how pictures were prepared. `records`:
    all that were to be measured; those that could not be read are noted, to be left out again when the file is used.
    Raises OSError where the file cannot be written.
    """
    failed = Counter(record.image for record in records) - Counter(record.image for record in evaluation.records)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pictures": [file_name(record.image) for record in evaluation.records],
        "captions": evaluation.captions,
        "left_out": [file_name(image) for image in failed.elements()],
        "logit_scale": evaluation.logit_scale,
        "facts": dict(facts),
    }
    with written_beside(Path(file)) as beside, beside.open("wb") as stream:
        np.savez(
            stream,
            image=evaluation.image_ND,
            text=evaluation.text_MD,
            caption_image=np.asarray(evaluation.caption_image_M, dtype=np.int64),
            # ASCII, for names that are no UTF-8 survive as JSON's escapes.
            description=np.frombuffer(json.dumps(description).encode("ascii"), dtype=np.uint8),
        )


def open_embeddings(source: str | Path) -> StoredEmbeddings:
    """Opens FILE.npz, or IMAGES.npy+TEXTS.npy. Nothing in it is executed.

    Raises DataError for a file that is missing, damaged or of another kind, for arrays that do not fit each other, and
    for rows that are not finite or are all zero, naming the first.
    """
    source = str(source)
    arrays = _arrays(source)
    names = next((pair for pair in PAIRS if set(pair) <= arrays.keys()), None)
    if names is None:
        raise DataError(
            f"{source}: holds no embeddings that are known: its arrays are {', '.join(sorted(arrays)) or 'none'}",
            "Name the arrays image and text, a row a picture and a row a caption.",
        )
    image_ND, text_MD = (_matrix(f"{source}: {name}", arrays[name]) for name in names)
    if image_ND.shape[1] != text_MD.shape[1]:
        widths = f"pictures have {counted(image_ND.shape[1], 'number')} a row, captions {text_MD.shape[1]}"
        raise DataError(f"{source}: {widths}", "Both must come from one model.")
    image_ND, images_rescaled = _unit(f"{source}: {names[0]}", image_ND)
    text_MD, texts_rescaled = _unit(f"{source}: {names[1]}", text_MD)
    rescaled = images_rescaled + texts_rescaled
    said = _description(source, arrays, len(image_ND), len(text_MD)) if "description" in arrays else {}
    return StoredEmbeddings(source, image_ND, text_MD, rescaled=rescaled, **said)


def evaluation_of(
    stored: StoredEmbeddings,
    records: Sequence[ImageText],
    quarantine: Quarantine | None = None,
    tell: Callable[[str], None] = lambda said: None,
) -> Evaluation:
    """Retrieval over `records` from stored rows, found by the pictures' names and captions.

    Rows of pictures and captions that are not among the records are left out; `tell` hears how many. A picture that
    could not be read when the file was made goes into the `quarantine` with its captions; without one it is an error.
    Raises DataError for a picture or caption that has no row, naming it; and for a file without names whose rows are
    not as many as the pictures and the captions.
    """
    if stored.rescaled:
        tell(f"{stored.source}: {counted(stored.rescaled, 'row')} not of unit length; made so")
    if stored.caption_image_M is None:
        _check_counts(stored, records)
        tell(f"{stored.source}: its rows have no names; they are taken to be those of this data, in its order")
        return assembled(records, stored.image_ND, stored.text_MD, {})
    image_rows, text_rows, failed = _aligned(stored, records)
    for row in failed:
        if quarantine is None:
            raise DataError(f"{records[row].image}: {failed[row]}")
        quarantine.add(records[row].image, failed[row])
    found = assembled(records, stored.image_ND[image_rows], stored.text_MD[text_rows], failed, stored.logit_scale)
    pictures = len(stored.pictures) - len(found.records)
    captions = len(stored.captions) - len(found.captions)
    if pictures > 0 or captions > 0:
        more = f"{counted(pictures, 'picture')} and {counted(max(captions, 0), 'caption')}"
        tell(f"{stored.source}: holds {more} more than this data; they are left out")
    return found


def _arrays(source: str) -> dict[str, np.ndarray]:
    """The arrays of the file or of the two, by name."""
    files = files_of(source)
    if len(files) == 1:
        return _loaded(source, npz=True)
    return {name: _loaded(file, npz=False)[""] for name, file in zip(PAIRS[0], files, strict=True)}


def _loaded(file: str, npz: bool) -> dict[str, np.ndarray]:
    if not Path(file).is_file():
        raise DataError(f"{file}: no such file")
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray) == npz:
            raise ValueError("it is of the other kind")
        if not npz:
            return {"": loaded}
        with loaded:
            # What else a program put into its file is not read, and may be anything.
            return {name: np.asarray(loaded[name] if name in READ else None) for name in loaded.files}
    except Exception as error:  # a damaged zip or header fails in any of a dozen ways
        kind = "NumPy .npz file" if npz else "NumPy .npy file"
        hint = "Arrays of Python objects are not read; write plain numbers." if "allow_pickle" in str(error) else ""
        raise DataError(f"{file}: is no {kind}, or damaged: {error or type(error).__name__}", hint) from None


def _matrix(name: str, array: np.ndarray) -> np.ndarray:
    """Two dimensions of floating-point numbers: float64 as it is, anything else as float32."""
    if array.ndim != 2 or not array.size:
        raise DataError(f"{name} must be rows of numbers, but its shape is {array.shape}")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} must be numbers, but is of type {array.dtype}")
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _unit(name: str, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The rows at unit length, and how many were not."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    for bad, what in ((~np.isfinite(lengths), "not finite"), (lengths == 0, "all zeros")):
        if bad.any():
            raise DataError(f"{name}: row {int(bad.argmax())} is {what} ({counted(int(bad.sum()), 'such row')})")
    far = np.abs(lengths - 1) > UNIT
    if far.any():
        rows = rows.copy()
        rows[far] = rows[far] / lengths[far, None]
    return rows, int(far.sum())


def _description(source: str, arrays: Mapping[str, np.ndarray], pictures: int, captions: int) -> dict[str, Any]:
    """The fields of StoredEmbeddings that cliplet's own files have, checked."""
    try:
        said = json.loads(arrays["description"].tobytes())
        form, version = said["format"], said["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{source}: its description cannot be read: {error}") from None
    if form != FORMAT or version != FORMAT_VERSION:
        raise DataError(
            f"{source}: is of form {form!r} {version}; this cliplet reads {FORMAT!r} {FORMAT_VERSION}",
            "Upgrade cliplet, or write the file again with this one.",
        )
    try:
        names, texts, left_out = (tuple(said[key]) for key in ("pictures", "captions", "left_out"))
        owners, facts = arrays["caption_image"], dict(said["facts"])
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{source}: lacks names, captions, their owners or facts") from None
    whole = owners.shape == (captions,) and owners.dtype.kind in "iu" and len(names) == pictures
    written = all(isinstance(text, str) for text in (*names, *texts, *left_out))
    if not (whole and written and len(texts) == captions and ((owners >= 0) & (owners < pictures)).all()):
        raise DataError(f"{source}: its names, captions and rows do not fit each other")
    rows = {"caption_image_M": owners.astype(np.int64), "pictures": names, "captions": texts}
    scale = float(said["logit_scale"]) if isinstance(said.get("logit_scale"), (int, float)) else None
    return {**rows, "left_out": left_out, "logit_scale": scale, "facts": facts}


def _check_counts(stored: StoredEmbeddings, records: Sequence[ImageText]) -> None:
    captions = sum(len(record.captions) for record in records)
    if (len(stored.image_ND), len(stored.text_MD)) != (len(records), captions):
        raise DataError(
            f"{stored.source}: holds {counted(len(stored.image_ND), 'picture')} and "
            f"{counted(len(stored.text_MD), 'caption')}, but the data has {counted(len(records), 'picture')} and "
            f"{counted(captions, 'caption')}",
            "Its rows have no names, so they must be those of this split, in the data's own order, all captions of a "
            "picture one after the other.",
        )


def _aligned(stored: StoredEmbeddings, records: Sequence[ImageText]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The rows of all pictures and of all captions of the records, and why some pictures have none (row 0 there)."""
    assert stored.caption_image_M is not None
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(stored.pictures):
        rows_of[name].append(place)
    texts_of: list[dict[str, int]] = [{} for _ in stored.pictures]
    for place, owner in enumerate(stored.caption_image_M):
        texts_of[owner].setdefault(stored.captions[place], place)
    unread = Counter(stored.left_out)
    image_rows: list[int] = []
    text_rows: list[int] = []
    failed: dict[int, str] = {}
    for number, record in enumerate(records):
        name = file_name(record.image)
        row = _row(rows_of[name], texts_of, record, unread[name] > 0)
        if row is not None:
            image_rows.append(row)
            text_rows += [_text_row(stored.source, name, caption, texts_of[row]) for caption in record.captions]
            continue
        if not unread[name]:
            raise DataError(f"{stored.source}: has no row for the picture {name}", "It was made from other data.")
        unread[name] -= 1
        failed[number] = f"could not be read when {stored.source} was made"
        image_rows.append(0)
        text_rows += [0] * len(record.captions)
    return np.array(image_rows, dtype=np.int64), np.array(text_rows, dtype=np.int64), failed


def _text_row(source: str, name: str, caption: str, rows: Mapping[str, int]) -> int:
    if caption in rows:
        return rows[caption]
    raise DataError(f"{source}: has no row for a caption of {name}: {caption!r}", "It was made from other captions.")


def _row(rows: list[int], texts_of: list[dict[str, int]], record: ImageText, may_lack: bool) -> int | None:
    """Takes the record's row from those of its name. Pictures of one name, from two folders, differ in captions; of
    rows that have all of the record's, the one with the fewest others. Where none has and the record `may_lack` a row,
    the rows are another's."""
    fitting = [row for row in rows if all(text in texts_of[row] for text in record.captions)]
    if not rows or (may_lack and not fitting):
        return None
    row = min(fitting or rows, key=lambda row: len(texts_of[row]))
    rows.remove(row)
    return row
