"""The whole tool in a few minutes: render scenes, train on them, measure on unseen combinations, search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cliplet import drawing
from cliplet.config import RunConfig
from cliplet.console import progress_bar, recall_table, say
from cliplet.data.readers import read_source
from cliplet.data.scenes import ANNOTATIONS, render_scenes
from cliplet.errors import INSTALL_TRAIN, ClipletError, TrainingError
from cliplet.evaluation import Evaluation, evaluate
from cliplet.recipes import recipe
from cliplet.results import DemoSummary
from cliplet.runtime.encoder import Encoder, load

TRAIN, VAL, TEST = 4000, 300, 500

Answer = tuple[str, list[tuple[Path, float, bool]]]

# What is asked, and what a scene's object (or the scene itself) must be for the answer to be right.
QUERIES = (
    ("a green heart", {"shape": "heart", "colour": "green"}),
    ("a red ring", {"shape": "ring", "colour": "red"}),
    ("something white at the seaside", {"colour": "white", "background": "beach"}),
    ("an orange cross against an evening sky", {"shape": "cross", "colour": "orange", "background": "sunset"}),
    (
        "a tiny white star in a winter landscape",
        {"shape": "star", "colour": "white", "size": "small", "background": "snow"},
    ),
)


def run_demo(output: Path, seed: int, console: Console | None = None) -> DemoSummary:
    """Renders into `output`/data, trains the recipe `demo` into `output`, measures it on the test split and draws
    the answers to a few queries. An earlier demo in `output` is replaced; another folder there is refused.

    Returns what it made, with the metrics on the test split, whose pictures all show a pair of shape and colour unseen
    in training.
    """
    console = console or Console()
    try:
        from cliplet.training import Interrupted, train
    except ModuleNotFoundError as error:
        raise ClipletError(
            f"the demo trains a model and needs the package {error.name}",
            INSTALL_TRAIN,
        ) from None
    _clear(output)
    data = output / "data"
    say(console, f"1. Rendering {TRAIN + VAL + TEST:,} scenes into {data}")
    size = recipe("demo").model.preprocess.image_size
    with progress_bar("rendering", console) as progress:
        render_scenes(data, TRAIN, VAL, TEST, seed=seed, image_size=size, progress=progress)

    say(console, "2. Training the recipe `demo` on them")
    config = _configure(output, data, seed)
    try:
        run = train(config, command=f"cliplet demo --output {output} --seed {seed}", console=console)
    except Interrupted as interrupted:
        raise Interrupted(interrupted.message, "The demo starts anew when it is called again.") from None

    say(console, f"3. Measuring the best model on {TEST} test scenes with combinations never seen in training")
    encoder = load(run.model_folder)
    test = read_source(data).select("test")
    with progress_bar("embedding", console) as progress:
        evaluation = evaluate(encoder, test, progress=progress)

    say(console, "4. Searching the test scenes for a few things")
    answers = _answer(encoder, evaluation, _scenes(data))
    queries = output / "queries.png"
    drawing.save_picture(drawing.query_sheet(answers), queries)
    for query, hits in answers:
        right = sum(hit[2] for hit in hits)
        say(console, f"   {query!r}: {right} of the first {len(hits)} right, best {hits[0][0].name}")
    console.print()
    console.print(recall_table(evaluation.metrics, "demo, test split"))
    say(console, f"pictures found: {queries}\nreport:         {run.report}")
    say(console, f"model:          {run.model_folder}\nscenes:         {data / 'images'}")
    return DemoSummary(
        model=str(run.model_folder),
        report=str(run.report),
        queries=str(queries),
        scenes=str(data / "images"),
        seed=seed,
        metrics=evaluation.metrics,
    )


def _configure(output: Path, data: Path, seed: int) -> RunConfig:
    config = recipe("demo")
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"path": str(data)}),
            "train": config.train.model_copy(update={"output": str(output), "seed": seed}),
        }
    )


def _clear(output: Path) -> None:
    """Removes what an earlier demo left, so that a second demo is a whole one. The scenes stay: they are the same."""
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / "data" / ANNOTATIONS).is_file() and not (output / "data" / "images").is_dir():
        raise TrainingError(f"{output}: is there and is no earlier demo", "Name another folder with --output.")
    for name in ("model", "last", "tensorboard", "checkpoints"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in ("config.yaml", "log.jsonl", "quarantine.jsonl", "report.html", "queries.png"):
        (output / name).unlink(missing_ok=True)


def _scenes(data: Path) -> dict[str, dict[str, Any]]:
    """What each rendered file shows, by its name."""
    images = json.loads((data / ANNOTATIONS).read_text(encoding="utf-8"))["images"]
    return {image["filename"]: image["scene"] for image in images}


def _answer(encoder: Encoder, evaluation: Evaluation, scenes: dict[str, dict[str, Any]], k: int = 6) -> list[Answer]:
    """For each query its k best pictures as (file, cosine, whether the scene shows what was asked)."""
    scores_QN = encoder.encode_text([query for query, _ in QUERIES]) @ evaluation.image_ND.T
    answers = []
    for (query, wanted), scores_N in zip(QUERIES, scores_QN, strict=True):
        best = [(Path(evaluation.records[i].image), float(scores_N[i])) for i in np.argsort(-scores_N)[:k]]
        answers.append((query, [(file, score, _shows(scenes[file.name], wanted)) for file, score in best]))
    return answers


def _shows(scene: dict[str, Any], wanted: dict[str, str]) -> bool:
    return any(wanted.items() <= {**thing, "background": scene["background"]}.items() for thing in scene["objects"])
