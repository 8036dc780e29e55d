"""What a run tells: JSON lines and TensorBoard for programs, a progress bar or plain lines for people."""

from __future__ import annotations

import json
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from cliplet.console import SECONDS_BETWEEN_LINES, say
from cliplet.files import written_beside


class RunLog(AbstractContextManager["RunLog"]):
    """`log.jsonl`, `tensorboard/` and the console of one run.

    Lines of the log: {"kind": "train", "step", "epoch", "loss", "logit_scale", "grad_norm", "lr_image", "lr_text",
    "lr_head", "images_per_second", "data_wait"} every few steps, with "loss_TERM" for each term where there are several
    and "skipped", the steps so far that changed nothing because they gave no numbers, where there are any;
    {"kind": "validation", "step", "epoch", metrics} and {"kind": "warning", "step", "message"}. `data_wait` is the
    share of time spent waiting for the loader.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        total_steps: int,
        resume_step: int = 0,
        resume_epoch: int = 0,
        writes: bool = True,
    ):
        """`resume_step`, `resume_epoch`: how far the run has come. `writes`: off on ranks other than the first, which
        then leave no trace."""
        self.writes = writes
        self.file = folder / "log.jsonl"
        self.console = console
        self.total_steps = total_steps
        if writes:
            if resume_step:
                self._forget_after(resume_step, resume_epoch)
            else:
                self.file.write_text("")
            purge = resume_step + 1 if resume_step else None
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:.0f} images/s"),
            TextColumn("{task.fields[recall]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=resume_step, epoch="", loss=float("nan"), speed=0.0, recall=""
        )
        self._started = self._last_line = time.monotonic()
        self._first_step = resume_step

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        if self.writes:
            self._tensorboard.close()

    def say(self, message: str) -> None:
        """A line for people."""
        say(self.console, message)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def train(self, step: int, epoch: float, epochs: int, **values: float) -> None:
        """A line of training figures."""
        self._write({"kind": "train", "step": step, "epoch": round(epoch, 4), **values})
        place = f"{max(1, math.ceil(epoch))}/{epochs}"
        self._progress.update(
            self._task, completed=step, epoch=place, loss=values["loss"], speed=values["images_per_second"]
        )
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._started) / max(1, step - self._first_step) * (self.total_steps - step)
            speed = f"{values['images_per_second']:.0f} images/s  data wait {values['data_wait']:.0%}"
            self.say(
                f"epoch {place}  step {step}/{self.total_steps}  loss {values['loss']:.3f}  {speed}  "
                f"{left / 60:.1f} min left"
            )

    def validation(self, step: int, epoch: int, epochs: int, metrics: dict[str, float], best: bool) -> None:
        """A line of recalls."""
        self._write({"kind": "validation", "step": step, "epoch": epoch, **metrics})
        recall = f"R@1 {metrics['image_to_text_R@1']:.1f}/{metrics['text_to_image_R@1']:.1f}"
        self._progress.update(self._task, recall=recall)
        self.say(
            f"epoch {epoch}/{epochs}  validation R@1/5/10: image→text {recalls(metrics, 'image_to_text')}, "
            f"text→image {recalls(metrics, 'text_to_image')}{'  (best so far)' if best else ''}"
        )

    def warning(self, step: int, message: str) -> None:
        """Something the user should look at."""
        self._write({"kind": "warning", "step": step, "message": message})
        self.console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def _write(self, line: dict[str, Any]) -> None:
        if not self.writes:
            return
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                self._tensorboard.add_scalar(f"{line['kind']}/{name}", value, line["step"])

    def _forget_after(self, step: int, epoch: int) -> None:
        """Drops lines that a resumed run will write again: of later steps, and of a validation whose epoch the
        checkpoint has not counted yet."""
        kept = [line for line in read_log(self.file) if line["step"] <= step]
        kept = [line for line in kept if line["kind"] != "validation" or line["epoch"] <= epoch]
        with written_beside(self.file) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def recalls(metrics: dict[str, float], direction: str) -> str:
    """R@1, R@5 and R@10 as `30.1/59.2/71.0`."""
    return "/".join(f"{metrics[f'{direction}_R@{k}']:.1f}" for k in (1, 5, 10))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that a kill cut short is left out."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
