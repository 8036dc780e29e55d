"""Inputs to a file of vectors: row i is input i, and a killed command goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import Problem, writable
from cliplet.embedding import outputs
from cliplet.embedding.inputs import Inputs, Pictures
from cliplet.embedding.work import Interrupted, Job, Work, alone
from cliplet.errors import ConfigError, DataError
from cliplet.results import EmbedSummary
from cliplet.runtime.encoder import Encoder, load
from cliplet.runtime.engines import TorchEngine
from cliplet.runtime.exported import Tower
from cliplet.runtime.graphs import OPENERS, GraphEngine
from cliplet.runtime.identity import model_hashes

TEXTS_AT_ONCE = 4096  # a block of them: how they are batched depends on what is in it, so a block is never begun twice

Tell = Callable[[int, int], None]  # of rows (done, total)
Say = Callable[[str], None]


def embed(
    inputs: Inputs,
    model: str | Path | Encoder,
    out: str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    dims: int | None = None,
    batch_size: int | None = None,
    half: bool = False,
    quarantine: Path | None = None,
    overwrite: bool = False,
    tell: Tell | None = None,
    say: Say = lambda message: None,
) -> EmbedSummary:
    """Writes a vector for each of `inputs` into `out`: a file .npy or .parquet, or a Lance dataset .lance.

    A picture that cannot be read is a row without a vector, with the reason beside it; no other row moves. `model`,
    `engine`, `precision`, `dims`: as for `cliplet.load`. `half`: vectors in float16. `quarantine`: where pictures that
    could not be read are written down as well. `tell` is called after each block; `say` hears what people should know.

    What is computed is kept beside `out` in OUT.partial until all is done; the same call goes on with it, and ends with
    the same bytes (of a Lance dataset, the same rows). Where `out` is that file already, nothing is done.

    Raises ConfigError or DataError for an `out` that cannot be, or that is there and something else (without
    `overwrite`); DataError where not one picture could be read, where `out` cannot be written and where another process
    is writing it; ModelError for a model that cannot be used; Interrupted after Ctrl-C.
    """
    began, out = time.monotonic(), Path(out)
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, got {batch_size}")
    if not inputs:
        raise DataError("there is nothing to embed")
    outputs.refuse_out(out)
    if isinstance(model, Encoder):
        encoder, name = model, model.source
    else:
        encoder, name = load(model, say, engine=engine, precision=precision, dims=dims), str(model)
    job = job_of(inputs, encoder, half)
    with alone(out) as folder:
        about = None if overwrite else outputs.finished(out, job)
        if about is not None:
            with suppress(DataError):  # a folder of somebody else stays
                Work(folder, job).tidy()
            start, failed, speed = job.rows, int(about["failed"]), None
        else:
            work = Work(folder, job)
            if not (overwrite or work.placing):
                outputs.refuse_occupied(out)
            start = work.done.rows
            run = _Run(inputs, encoder, name, out, batch_size, quarantine, tell, say)
            with explained(out, work), closing(work):
                speed = run.finish(work)
            failed = work.done.failed
    return EmbedSummary(
        out=writable(str(out)),
        model=writable(name),
        engine=job.engine,
        rows=job.rows,
        embedded=job.rows - failed,
        failed=failed,
        dims=job.dims,
        seconds=round(time.monotonic() - began, 3),
        pictures_per_second=speed,
        resumed_from=start,
    )


def job_of(inputs: Inputs, encoder: Encoder, half: bool) -> Job:
    """What decides the numbers of an embedding."""
    tower: Tower = "image" if isinstance(inputs, Pictures) else "text"
    return Job(
        model=model_hashes(encoder),
        engine=_engine_name(encoder, tower),
        dims=encoder.embed_dim,
        half=half,
        column=inputs.column,
        rows=len(inputs),
        inputs=inputs.fingerprint(),
    )


def _engine_name(encoder: Encoder, tower: Tower) -> str:
    """What computes, where it can be told; another engine rounds otherwise."""
    engine: Any = encoder.engine
    if hasattr(engine, "describe"):
        return str(engine.describe(tower))
    if isinstance(engine, TorchEngine):
        return f"torch in {engine.precision}"
    if isinstance(engine, GraphEngine):
        kind = type(engine.graph(tower))
        return next((name for name, opener in OPENERS.items() if opener is kind), "torch")
    return ""


@contextmanager
def explained(out: Path, work: Work) -> Iterator[None]:
    """What ends the work, as an error that says how to go on."""
    again = "What is computed is kept; the same command goes on from there."
    try:
        yield
    except KeyboardInterrupt:
        done = f"{work.done.rows:,} of {work.job.rows:,} rows"
        raise Interrupted(f"{out}: embedding was interrupted after {done}", again) from None
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written: {error.strerror or error}",
            f"Make room, or see to the rights of the folder. {again}",
        ) from None


@dataclass(frozen=True)
class _Run:
    """One call of `embed`, whose arguments these are."""

    inputs: Inputs
    encoder: Encoder
    model: str
    out: Path
    batch_size: int | None
    quarantine: Path | None
    tell: Tell | None
    say: Say

    def finish(self, work: Work) -> float | None:
        """Does all that is left to do; returns rows computed a second, None where none were."""
        speed = None
        if not work.placing:
            if work.differing:
                self.say(f"{work.folder} was begun with {' and '.join(work.differing)}: beginning anew")
            elif work.done.rows:
                self.say(f"going on after {work.done.rows:,} of {work.job.rows:,} rows")
            book = Quarantine(self.quarantine)
            before, began = work.done.rows, time.monotonic()
            work.begin()
            self.compute(work, book)
            if work.done.failed == work.job.rows:
                _, error = next(work.errors())
                work.clear()
                what = f"not one picture of {work.job.rows:,} could be read"
                raise DataError(f"{what}; the first, {self.inputs[0]}: {error}")
            if work.done.rows > before:
                speed = round((work.done.rows - before) / max(time.monotonic() - began, 1e-6), 1)
            outputs.make(self.out, work, self.inputs, self.model)
            work.save(placing=True)
        outputs.place(self.out, work.folder)
        work.clear()
        return speed

    def compute(self, work: Work, book: Quarantine) -> None:
        """Appends the rows that are missing; what was computed when something ends this is saved, if it can be."""
        if isinstance(self.inputs, Pictures):
            book.extend(self.inputs.problems)
        book.extend(self.problem(row, error) for row, error in work.errors())
        try:
            with closing(self.blocks(work.done.rows)) as blocks:
                self.told(work)
                for features_BD, failed in blocks:
                    first = work.done.rows
                    work.append(features_BD, failed)
                    book.extend(self.problem(first + row, error) for row, error in failed.items())
                    self.told(work)
        except BaseException:
            with suppress(OSError):
                work.save()
            raise
        work.save()

    def blocks(self, start: int) -> Generator[tuple[np.ndarray, dict[int, str]], None, None]:
        """Features (B, D) from row `start` on, and why some rows of a block have none."""
        inputs = self.inputs
        if isinstance(inputs, Pictures):
            pictures = (inputs[row] for row in range(start, len(inputs)))
            for features_BD, errors in self.encoder.encode_image_blocks(pictures, batch_size=self.batch_size):
                failed = {}
                for row, error in errors.items():
                    failed[row] = writable(error.message.removeprefix(f"{inputs[start + row]}: "))
                start += len(features_BD)
                yield features_BD, failed
            return
        for first in range(start, len(inputs), TEXTS_AT_ONCE):
            texts = [inputs[row] for row in range(first, min(first + TEXTS_AT_ONCE, len(inputs)))]
            yield self.encoder.encode_text(texts, batch_size=self.batch_size), {}

    def problem(self, row: int, error: str) -> Problem:
        """What the quarantine says of a row."""
        return Problem(writable(self.inputs[row]), error)

    def told(self, work: Work) -> None:
        """Tells how far it is."""
        if self.tell:
            self.tell(work.done.rows, work.job.rows)
