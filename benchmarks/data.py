"""Reading, decoding and batching beside what people use otherwise.

    python benchmarks/data.py load FOLDER     photographs as they are, enlarged to 2000 pixels, and packed
    python benchmarks/data.py read COCO_JSON  an annotation file, the same 50 times as large, and a million rows of TSV
    python benchmarks/data.py pixels FOLDER   how far the evaluation transform's pixels are from torchvision's

FOLDER holds JPEG photographs of about 500 pixels. Loading is timed with one worker and one thread of PyTorch, in rounds
that take turns, against torchvision's ImageFolder with the transforms that its documentation trains with, and against
the decoder alone. Reading is timed in processes of their own, against json.load.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE, BATCH, ROUNDS = 224, 50, 5
LARGE = 2000  # pixels of the longer side
COPIES = 50
ROWS = 1_000_000


def load(folder: Path) -> None:
    """Pictures a second, one worker, for photographs as they are, enlarged, and packed."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        plain = sorted(folder.glob("*.jpg"))
        if len(plain) < BATCH:
            raise SystemExit(f"{folder}: {len(plain)} .jpg files are too few to measure with")
        large = _enlarged(plain[:BATCH], Path(scratch) / "large")
        packed = _packed(plain, Path(scratch) / "packed")
        print(f"{len(plain)} photographs; 1 worker; {SIZE} pixels; batches of {BATCH}; median of {ROUNDS} rounds\n")
        print(f"{'':<16}{'torchvision':>13}{'cliplet':>10}{'ratio':>8}{'decoder alone':>16}{'share of it':>13}")
        for name, files, records, repeats in (
            ("500 pixels", plain, _records(plain), 2),
            (f"{LARGE} pixels", large, _records(large), 2),
            ("packed", plain, packed, 4),
        ):
            usual, ours = _usual(files, Path(scratch) / name), _ours(records)
            bare = _decoder(records)
            rates: list[list[float]] = [[], [], []]
            for round_ in range(ROUNDS):
                for values, loader in zip(rates, (usual, ours, bare), strict=True):
                    values.append(_rate(loader, round_, repeats))
            theirs, own, alone = map(statistics.median, rates)
            print(f"{name:<16}{theirs:>13.0f}{own:>10.0f}{own / theirs:>7.2f}x{alone:>16.0f}{own / alone:>12.0%}")


def _enlarged(files: list[Path], folder: Path) -> list[Path]:
    """Photographs of LARGE pixels made from smaller ones."""
    from PIL import Image

    folder.mkdir()
    for file in files:
        image = Image.open(file).convert("RGB")
        ratio = LARGE / max(image.size)
        image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)
        image.save(folder / file.name, quality=90)
    return sorted(folder.iterdir())


def _records(files: list[Path]):
    from cliplet.data.records import ImageText, Records

    return Records.of(ImageText(str(file), ("a photograph",)) for file in files)


def _packed(files: list[Path], out: Path):
    from cliplet.data.packing import pack
    from cliplet.data.readers import read_source
    from cliplet.data.shards import Settings

    table = out.with_suffix(".tsv")
    table.write_text("".join(f"{file.resolve()}\ta photograph\ttrain\n" for file in files))
    pack(str(table), out, Settings())
    return read_source(out).records


def _usual(files: list[Path], folder: Path) -> Callable[[int], Iterator[int]]:
    """torchvision's ImageFolder, its training transforms, and DataLoader's worker process."""
    import torch
    from torchvision import datasets, transforms

    (folder / "class").mkdir(parents=True)
    for file in files:
        (folder / "class" / file.name).symlink_to(file.resolve())
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.9, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    pictures = datasets.ImageFolder(str(folder), transform)
    loader = torch.utils.data.DataLoader(
        pictures, batch_size=BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True
    )
    return lambda round_: (len(pixels) for pixels, _ in loader)


def _ours(records) -> Callable[[int], Iterator[int]]:
    from cliplet.config import AugmentConfig, DataConfig
    from cliplet.data.loader import TrainLoader
    from cliplet.data.quarantine import Quarantine
    from cliplet.models.tokenizers import train_bpe

    loader = TrainLoader(
        records,
        train_bpe(["a photograph"] * 2, 300, 16),
        batch_size=BATCH,
        image_size=SIZE,
        data=DataConfig(workers=1),
        augment=AugmentConfig(),
        seed=0,
        quarantine=Quarantine(),
    )
    return lambda round_: (len(batch.pixels_B3HW) for batch in loader.epoch(round_))


def _decoder(records) -> Callable[[int], Iterator[int]]:
    """The bytes read and decoded, at the size at which the loader decodes them, and nothing else."""
    from cliplet.data.images import decode_image
    from cliplet.data.loader import TRAIN_SIDES

    return lambda round_: (len(decode_image(record.image, int(SIZE * TRAIN_SIDES))) and 1 for record in records)


def _rate(loader: Callable[[int], Iterator[int]], round_: int, repeats: int) -> float:
    """Pictures a second over some epochs; the first batch, for which workers start, is not counted."""
    batches = itertools.chain.from_iterable(loader(round_ * repeats + n) for n in range(repeats))
    next(batches)
    start = time.perf_counter()
    return sum(batches) / (time.perf_counter() - start)


def pixels(folder: Path) -> None:
    """Differences from torchvision's Resize and CenterCrop of the whole picture, bicubic with antialiasing."""
    import numpy as np
    from PIL import Image
    from torchvision.transforms import v2

    from cliplet.config import PreprocessConfig
    from cliplet.runtime.preprocess import preprocess_image

    plain = sorted(folder.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as scratch:
        large = _enlarged(plain[:BATCH], Path(scratch) / "large")
        for name, files in (("500 pixels", plain), (f"{LARGE} pixels", large)):
            for size in (224, 64, 32):
                reference = v2.Compose(
                    [v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(size)]
                )
                differences = [
                    np.abs(
                        preprocess_image(file, PreprocessConfig(image_size=size)).astype(int)
                        - np.asarray(reference(Image.open(file).convert("RGB"))).astype(int)
                    )
                    for file in files
                ]
                means = [float(difference.mean()) for difference in differences]
                print(
                    f"{name} to {size}: mean {statistics.mean(means):.3f} of 255 (of a picture at most "
                    f"{max(means):.2f}), largest {max(int(d.max()) for d in differences)}"
                )


def read(file: Path) -> None:
    """Seconds and memory for annotations, each read in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        images.mkdir()
        annotations = json.loads(file.read_text())
        once = Path(scratch) / "captions_once.json"
        once.write_text(json.dumps(annotations))
        large = Path(scratch) / "captions_large.json"
        large.write_text(json.dumps(_repeated(annotations)))
        table = Path(scratch) / "captions.tsv"
        with table.open("w") as stream:
            stream.writelines(f"{row:09d}.jpg\tA dog runs over the grass, seen for time {row}\n" for row in range(ROWS))
        for name in (annotations["images"][0]["file_name"], "00_" + annotations["images"][0]["file_name"]):
            (images / name).touch()
        (images / "000000000.jpg").touch()
        for name, one in ((f"{file.name}", once), (f"{COPIES} times as large", large)):
            rounds = [(_measured(_JSON, one), _measured(_READ, one)) for _ in range(ROUNDS)]
            _show(name, [theirs for theirs, _ in rounds], [ours for _, ours in rounds])
        _show(f"{ROWS:,} rows of TSV", [], [_measured(_READ, table) for _ in range(ROUNDS)])


def _repeated(annotations: dict) -> dict:
    images = [
        {**image, "id": image["id"] + copy * 10**9, "file_name": f"{copy:02d}_{image['file_name']}"}
        for copy in range(COPIES)
        for image in annotations["images"]
    ]
    captions = [
        {**one, "id": one["id"] + copy * 10**9, "image_id": one["image_id"] + copy * 10**9}
        for copy in range(COPIES)
        for one in annotations["annotations"]
    ]
    return {**annotations, "images": images, "annotations": captions}


_MEASURE = """
import sys, time
{imports}
def megabytes(line):
    return int(next(x for x in open("/proc/self/status") if x.startswith(line)).split()[1]) / 1024
before = megabytes("VmRSS")
start = time.perf_counter()
result = {expression}
print(time.perf_counter() - start, megabytes("VmHWM") - before)
"""
_JSON = _MEASURE.format(imports="import json", expression="json.load(open(sys.argv[1]))")
_READ = _MEASURE.format(
    imports="from cliplet.data.readers import read_source",
    expression="read_source(sys.argv[1], sys.argv[1].rpartition('/')[0] + '/images')",
)


def _measured(code: str, file: Path) -> tuple[float, float]:
    """Seconds and MB of a process that runs the code on the file."""
    run = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, run.stdout.split())
    return seconds, megabytes


def _show(name: str, theirs: list[tuple[float, float]], ours: list[tuple[float, float]]) -> None:
    own = [statistics.median(values) for values in zip(*ours, strict=True)]
    line = f"{name:<28}cliplet {own[0]:6.2f} s {own[1]:6.0f} MB"
    if theirs:
        usual = [statistics.median(values) for values in zip(*theirs, strict=True)]
        line += f"   json.load {usual[0]:6.2f} s {usual[1]:6.0f} MB"
        line += f"   {own[0] / usual[0]:.2f} times the time, {own[1] / usual[1]:.2f} times the memory"
    print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "read", "pixels"))
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    {"load": load, "read": read, "pixels": pixels}[options.what](options.path)


if __name__ == "__main__":
    main()
