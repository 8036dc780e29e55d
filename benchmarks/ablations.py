"""Do the five systems' claims hold? One change at a time to one small CLIP, several seeds each, equal steps.

    python benchmarks/ablations.py path/to/flickr8k --weights mobilenetv2_100.safetensors [--out FILE] [--jobs 2]
    python benchmarks/ablations.py --table ablations.jsonl

The model is that of the recipe `finetune`: MobileNetV2 and MiniLM-L6, pretrained, MLP heads, D = 512, InfoNCE over
batches of 128 with two captions a picture, AdamW, a learned temperature. `frozen` variants train heads and
temperature alone, for ten epochs, from kept features of whole pictures at 224 pixels; `setup` variants compare what
is trained, for four epochs on 3,000 of the pictures at 128 pixels with one caption, as system 4 does. All variants of
a group make equally many steps in the same order of pictures, at the same rates; SAM's are two passes each, and K
captions are K times the text.

What is measured is the last epoch's model, on the validation split: no epoch is chosen, so nothing is tuned there but
by whoever reads the table. Every line of OUT is one run; runs that are there already are not made again. The table
gives the mean over seeds and the mean difference from the group's base, with its 95 % t-interval over seeds, paired
by seed: what another seed would give, not what other pictures would. A claim "holds" or "fails" where the interval of
the difference in rsum leaves out zero.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

SEEDS = 3
FROZEN_EPOCHS, SETUP_EPOCHS, SETUP_PICTURES = 10, 4, 3000
MLP = {"kind": "mlp", "hidden": 1024, "dropout": 0.2}
SHOWN = ("image_to_text_R@1", "image_to_text_R@10", "text_to_image_R@1", "text_to_image_R@10", "rsum")

# Group, variant, what is claimed of it against the group's base, and what is changed. The first of a group is its base.
FROZEN: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("MLP heads, K = 2, AdamW, learned temperature, InfoNCE", {}),
    "linear text head": ("worse than MLP", {"model": {"text_head": {"kind": "linear"}}}),
    "linear heads": ("worse than MLP", {"model": {"text_head": {"kind": "linear"}, "image_head": {"kind": "linear"}}}),
    "ConvFFN text head": ("better than MLP (system 1)", {"model": {"text_head": {"kind": "convffn", "dropout": 0.1}}}),
    "K = 1": ("worse than K = 2 (system 1)", {"data": {"captions_per_image": 1}}),
    "K = 5": ("", {"data": {"captions_per_image": 5}}),
    "first caption is the label": ("worse than soft targets (system 1)", {"loss": {"soft_targets": False}}),
    "SAM": ("better than AdamW (system 2)", {"optim": {"sam": {"rho": 0.05}}}),
    "SAM per layer": ("better than AdamW (system 2)", {"optim": {"sam": {"rho": 0.05, "per_layer": True}}}),
    "dynamic temperature": ("better than learned (system 2)", {"model": {"temperature": {"kind": "dynamic"}}}),
    "hard negatives 0.1": ("better than none (system 5)", {"loss": {"hard_negative": 0.1}}),
    "hard negatives 1": ("better than none (system 5)", {"loss": {"hard_negative": 1.0}}),
    "SigLIP": (
        "as good at small batches (Zhai et al. 2023)",
        {"loss": {"info_nce": 0.0, "siglip": 1.0}, "model": {"logit_bias": -10.0, "temperature": {"init": 10.0}}},
    ),
}
SETUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "setup 2: everything": ("", {}),
    "setup 1: heads alone": ("worse than 2 (system 4)", {}),
    "setup 3: everything, then two blocks": ("better than 2 (system 4)", {}),
}
GROUPS = {"frozen": FROZEN, "setups": SETUPS}


def configured(group: str, variant: str, seed: int, source: argparse.Namespace, folder: Path) -> list[Any]:
    """The runs of a variant, one after the other."""
    from cliplet.config import RunConfig
    from cliplet.recipes import recipe

    plain = recipe("finetune").model_dump(mode="json")
    plain["data"].update(path=str(source.data), workers=1)
    plain["model"]["image"]["weights"] = [str(source.weights)]
    plain["train"].update(seed=seed, precision="auto" if group == "setups" else "fp32", output=str(folder / "run"))
    if group == "frozen":
        stages = [{"epochs": FROZEN_EPOCHS, "image_blocks": 0, "text_blocks": 0, "augment": False}]
        plain["train"].update(stages=stages, features=str(source.features), validate_every=FROZEN_EPOCHS)
        return [RunConfig.model_validate(merged(plain, FROZEN[variant][1]))]
    plain["data"].update(captions_per_image=1, max_images=SETUP_PICTURES)
    plain["model"]["preprocess"].update(image_size=128)
    plain["train"].update(validate_every=SETUP_EPOCHS)

    def stages_of(blocks: int | str, epochs: int) -> list[dict[str, Any]]:
        return [{"epochs": epochs, "image_blocks": blocks, "text_blocks": blocks}]

    if variant.startswith("setup 1"):
        return [RunConfig.model_validate(merged(plain, {"train": {"stages": stages_of(0, SETUP_EPOCHS)}}))]
    if variant.startswith("setup 2"):
        return [RunConfig.model_validate(merged(plain, {"train": {"stages": stages_of("all", SETUP_EPOCHS)}}))]
    half = SETUP_EPOCHS // 2
    first = merged(plain, {"train": {"stages": stages_of("all", half), "output": str(folder / "first")}})
    start = {"stages": stages_of(2, half), "start_from": str(folder / "first" / "last")}
    # System 4's rates of this setup fall by as much for the towers as they do here.
    rates = {"image_lr": plain["optim"]["image_lr"] / 5, "text_lr": plain["optim"]["text_lr"] / 5}
    second = merged(plain, {"train": start, "optim": rates})
    return [RunConfig.model_validate(first), RunConfig.model_validate(second)]


def merged(plain: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the changes laid over; a head or temperature of another kind takes nothing over from the old one."""
    result = dict(plain)
    for key, value in changes.items():
        whole = isinstance(value, dict) and "kind" in value
        result[key] = merged(plain[key], value) if isinstance(value, dict) and not whole else value
    return result


def measured(job: tuple[str, str, int], source: argparse.Namespace) -> dict[str, Any]:
    """One run, from its configuration to its metrics."""
    from rich.console import Console

    from cliplet.training import train

    group, variant, seed = job
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=source.features.parent) as folder:
        for config in configured(group, variant, seed, source, Path(folder)):
            run = train(config, console=Console(quiet=True))
    metrics = {name: run.evaluation.metrics[name] for name in SHOWN}
    return {"group": group, "variant": variant, "seed": seed, "seconds": time.monotonic() - start, "metrics": metrics}


def work(jobs: Any, results: Any, source: argparse.Namespace) -> None:
    """A process that makes runs until there are none left."""
    while (job := jobs.get()) is not None:
        try:
            results.put(measured(job, source))
        except BaseException as error:
            results.put({"job": job, "error": f"{type(error).__name__}: {error}"})
            return


def run_all(source: argparse.Namespace) -> int:
    done = {(one["group"], one["variant"], one["seed"]) for one in read(source.out)}
    wanted = [
        (group, variant, seed)
        for group in source.groups
        for seed in range(source.seeds)
        for variant in GROUPS[group]
        if (group, variant, seed) not in done and (not source.only or variant in source.only)
    ]
    source.features.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    for job in [*wanted, *[None] * source.jobs]:
        jobs.put(job)
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // source.jobs))  # the processes read it
    workers = [context.Process(target=work, args=(jobs, results, source)) for _ in range(source.jobs)]
    for number, worker in enumerate(workers):
        worker.start()
        if number == 0 and "frozen" in source.groups and wanted:
            keep(source, results.get())  # so that the features are computed once, and not by all at the same time
            wanted = wanted[1:]
    failed = False
    for _ in wanted:
        failed |= not keep(source, results.get())
        if failed:
            break
    for worker in workers:
        worker.terminate() if failed else worker.join()
    return 1 if failed else 0


def keep(source: argparse.Namespace, result: dict[str, Any]) -> bool:
    """Writes a run down; whether it went well."""
    if "error" in result:
        print(f"{result['job']}: {result['error']}", file=sys.stderr)
        return False
    with source.out.open("a", encoding="utf-8") as lines:
        print(json.dumps(result), file=lines, flush=True)
    rsum = result["metrics"]["rsum"]
    print(
        f"{result['group']}: {result['variant']}, seed {result['seed']}: rsum {rsum:.1f} in {result['seconds']:.0f} s"
    )
    return True


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: each variant's means, and its differences from its group's base with their intervals."""
    by_variant: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for run in runs:
        by_variant[run["group"], run["variant"]][run["seed"]] = run["metrics"]
    lines = []
    for group, variants in GROUPS.items():
        base = by_variant.get((group, next(iter(variants))))
        if not base:
            continue
        lines += ["", f"| {group} | seeds | I→T R@1 | T→I R@1 | rsum | difference in rsum | claimed | |"]
        lines += ["|---|--:|--:|--:|--:|--:|---|---|"]
        for variant, (claim, _) in variants.items():
            runs_of = by_variant.get((group, variant))
            if not runs_of:
                continue
            means = {name: np.mean([metrics[name] for metrics in runs_of.values()]) for name in SHOWN}
            cells = [f"{means[name]:.1f}" for name in ("image_to_text_R@1", "text_to_image_R@1", "rsum")]
            shared = sorted(runs_of.keys() & base.keys())
            differences = np.array([runs_of[seed]["rsum"] - base[seed]["rsum"] for seed in shared])
            words, verdict = compared(differences, claim) if runs_of is not base else ("", "")
            lines.append(f"| {variant} | {len(runs_of)} | {' | '.join(cells)} | {words} | {claim} | {verdict} |")
    return "\n".join(lines)


def compared(differences: np.ndarray, claim: str) -> tuple[str, str]:
    """A mean difference with its t-interval, and what becomes of the claim."""
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return f"{mean:+.1f}", ""
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    words = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
    found = "better" if mean - half > 0 else "worse" if mean + half < 0 else "no difference shown"
    expected = claim.split(" ")[0]
    if expected not in ("better", "worse"):
        return words, found
    return words, "holds" if found == expected else f"fails: {found}" if found != "no difference shown" else found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", help="Flickr8k, in any form that cliplet reads")
    parser.add_argument("--weights", type=Path, help="of MobileNetV2, as timm names its tensors")
    parser.add_argument("--out", type=Path, default=Path("ablations.jsonl"))
    parser.add_argument("--features", type=Path, default=Path(tempfile.gettempdir()) / "cliplet-ablations" / "features")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--only", nargs="+", help="variants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--table", type=Path, help="print the table of runs that were made, and make none")
    source = parser.parse_args()
    if source.table:
        print(table(read(source.table)))
        return 0
    if not source.data or not source.weights:
        parser.error("name the data and --weights")
    source.features = source.features.absolute()
    status = run_all(source)
    shutil.rmtree(source.features, ignore_errors=True)
    print(table(read(source.out)))
    return status


if __name__ == "__main__":
    sys.exit(main())
