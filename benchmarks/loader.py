"""Is the step starved? Pictures a second of the loader, of the usual loader, and of the model that eats them.

    python benchmarks/loader.py DATA [--batches 20]

DATA is a data set that cliplet reads, Flickr8k for example. In one run, in turns, with the same number of workers:
cliplet's TrainLoader (threads; pictures, captions and tokens); the usual way, torch's DataLoader with worker processes
over Pillow and torchvision's RandomResizedCrop, flip, ToTensor and Normalize (pictures alone, less work); and
training steps of the recipe flickr8k on ready batches. The claim: the loader is faster than the model, so the step
does not wait.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable

import torch
from PIL import Image
from torchvision import transforms

from cliplet.data.loader import BATCHES_AHEAD, TrainLoader
from cliplet.data.readers import read_source
from cliplet.data.records import Quarantine
from cliplet.models import DualEncoder
from cliplet.recipes import flickr8k
from cliplet.training.optim import build_optimizer, choose_device, choose_precision, set_learning_rate
from cliplet.training.stages import set_trainable
from cliplet.training.step import train_step

ROUNDS = 3


class Pictures(torch.utils.data.Dataset):
    """The peer: one picture a file, opened with Pillow, transformed as Pillow objects, normalised as floats."""

    def __init__(self, files: list[str], size: int, scale: tuple[float, float]):
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[row]).convert("RGB"))


def rate(batches: Iterable, size: int, count: int) -> float:
    """Pictures a second over `count` batches. Those made ahead while threads and processes start are not counted."""
    iterator = iter(batches)
    for _ in range(BATCHES_AHEAD + 1):
        next(iterator)
    start = time.perf_counter()
    seen = sum(1 for _ in itertools.islice(iterator, count))
    return size * seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()

    config = flickr8k()
    size = config.train.batch_size
    records = read_source(options.data).select("train")
    if len(records) < (BATCHES_AHEAD + 2) * size:
        raise SystemExit(f"{options.data}: {len(records)} pictures are too few to measure with")
    image = config.model.image.model_copy(update={"weights": ()})  # speed does not depend on the weights
    model = DualEncoder.build(config.model.model_copy(update={"image": image}))
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    model = model.to(device)
    set_trainable(model, config.train.stages[-1])
    model.train()
    optimizer = build_optimizer(model, config.optim)
    set_learning_rate(optimizer, 1.0)
    loader = TrainLoader(
        records,
        model.tokenizer,
        batch_size=size,
        image_size=config.model.preprocess.image_size,
        data=config.data.model_copy(update={"workers": options.workers}),
        augment=config.augment,
        seed=0,
        quarantine=Quarantine(),
    )
    peer = torch.utils.data.DataLoader(
        Pictures([record.image for record in records], config.model.preprocess.image_size, config.augment.crop_scale),
        batch_size=size,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
    )
    ready = [batch.to(device) for batch in itertools.islice(loader.epoch(0), 4)]
    train_step(model, optimizer, ready[0], config, precision)
    rates: dict[str, list[float]] = {"cliplet's loader": [], "usual loader": [], "training steps": []}
    for round_ in range(ROUNDS):
        rates["cliplet's loader"].append(rate(loader.epoch(round_), size, options.batches))
        rates["usual loader"].append(rate(peer, size, options.batches))
        start = time.perf_counter()
        for batch in ready[1:]:
            float(train_step(model, optimizer, batch, config, precision).loss)
        rates["training steps"].append(size * len(ready[1:]) / (time.perf_counter() - start))

    print(f"{device}, {precision}, {torch.get_num_threads()} threads, {options.workers} loader workers, batch {size}")
    for name, values in rates.items():
        spread = f"(of {ROUNDS}: {min(values):.0f} to {max(values):.0f})"
        print(f"{name:<18}{statistics.median(values):8.0f} pictures/s   {spread}")
    ours, usual, steps = (statistics.median(values) for values in rates.values())
    print(f"loader / model {ours / steps:.1f}x, loader / usual loader {ours / usual:.2f}x")


if __name__ == "__main__":
    main()
