"""What a run measures of itself: speed, share of time waiting for data, recent losses, and each step's scalars."""

from __future__ import annotations

import time
from collections import deque

import torch

from cliplet.training.step import StepResult

RECENT = 50  # so many last losses are kept


class Scalars:
    """A step's scalars on their way to the host. On a GPU the copy is queued behind the step, so that reading it later
    waits for that step and not for what was queued since."""

    def __init__(self, result: StepResult):
        named = {"skipped": result.skipped, "loss": result.loss, "logit_scale": result.logit_scale}
        named["grad_norm"] = result.grad_norm
        if len(result.terms) > 1:  # else it is the loss
            named.update({f"loss_{name}": value for name, value in result.terms.items()})
        self._names = list(named)
        self._values = torch.stack([value.float() for value in named.values()])
        self._ready: torch.cuda.Event | None = None
        if self._values.is_cuda:
            on_device = self._values
            self._values = torch.empty(on_device.shape, dtype=on_device.dtype, pin_memory=True)
            self._values.copy_(on_device, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read(self) -> dict[str, float]:
        """The values by name, once the step is done; `skipped` is 0 or 1."""
        if self._ready is not None:
            self._ready.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


class Meter:
    """What passes between the steps of this process; `batch_size` pictures a step, of all ranks together."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.losses: deque[float] = deque(maxlen=RECENT)
        self._figures = {"images_per_second": 0.0, "data_wait": 0.0}
        self.start()

    def start(self) -> None:
        """Begins to measure, at the start of an epoch or after a line of the log."""
        self._since = self._mark = time.monotonic()
        self._waited, self._counted = 0.0, 0

    def waiting(self) -> None:
        """From now on what passes is waiting for data."""
        self._mark = time.monotonic()

    def data_arrived(self) -> None:
        """A batch is there."""
        self._waited += time.monotonic() - self._mark

    def step_done(self) -> None:
        """A step is done, or on its way on a GPU."""
        self._counted += 1

    def mean_loss(self) -> float:
        """Mean of the last losses, RECENT of them at most."""
        return sum(self.losses) / len(self.losses)

    def read(self) -> dict[str, float]:
        """Images a second and the share of time spent waiting for data, since the last call; or what that one gave,
        where no step was made since."""
        if self._counted:
            elapsed = max(1e-9, time.monotonic() - self._since)
            self._figures = {
                "images_per_second": self._counted * self.batch_size / elapsed,
                "data_wait": self._waited / elapsed,
            }
            self.start()
        return self._figures
