"""Steps that changed nothing because their loss or gradient was no number: counted, and too many of them end a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from cliplet.data.batch import Batch
from cliplet.data.records import Records
from cliplet.errors import TrainingError

FOLDER = "skipped-batch"  # in the run folder: the batch at which the run ended
SCALING = 24  # more steps in a row that fp16 may take to find its scale, from 2^16 down
LOWER_RATES = (
    "Start anew in another folder with lower learning rates (--optim.image-lr, --optim.text-lr, --optim.head-lr), "
    "or with --train.precision fp32."
)


class Skips:
    """Counts skipped steps; `limit` in a row are allowed, and SCALING more with `scaled` gradients, which overflow
    until the scale is found. `total`: skipped before."""

    def __init__(self, limit: int, scaled: bool, folder: Path, records: Records, total: int = 0, rank: int = 0):
        self.limit = limit + (SCALING if scaled else 0)
        self.folder, self.records, self.total, self.rank = folder / FOLDER, records, total, rank
        self._row = 0

    def passed(self) -> None:
        """A step was made."""
        self._row = 0

    def skipped(self, step: int, what: str, batches: Sequence[Batch]) -> None:
        """A step was not; `what` was no number. Raises TrainingError, the batch saved, when that was one too many."""
        self.total += 1
        self._row += 1
        if self._row > self.limit:
            for number, batch in enumerate(batches):
                save_batch(batch, self.records, self.folder, f"{self.rank}-{number}")
            raise TrainingError(
                f"{self._row} steps in a row had no finite loss and gradient, up to step {step}: {what}. "
                f"What the last one was made from is in {self.folder}",
                LOWER_RATES,
            )


def save_batch(batch: Batch, records: Records, folder: Path, name: str) -> None:
    """Writes a batch down: `NAME.safetensors` as the model saw it, `NAME.jsonl` with each picture's place and captions
    drawn. `name`: of several ranks and batches a step, which."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous().cpu() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    save_file(tensors, folder / f"{name}.safetensors")
    captions, first = list(records.captions()), 0
    owners = batch.caption_image_C.tolist()
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for place, row in enumerate(batch.rows_B.tolist()):
            count = owners.count(place)
            drawn = [captions[caption] for caption in batch.caption_rows_C[first : first + count].tolist()]
            first += count
            stream.write(json.dumps({"image": records.image(row), "captions": drawn}, ensure_ascii=False) + "\n")
