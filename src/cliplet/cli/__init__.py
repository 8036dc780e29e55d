"""The command line: one thin function a verb. What a verb does not need is not imported for it."""

# No `from __future__ import annotations` here: it would turn the options' annotations into text, in which tyro, that
# each verb imports for itself, cannot be found again.

import dataclasses
import json as json_module
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cliplet.cli.classify import few_shot, zero_shot
from cliplet.cli.compare import compare
from cliplet.cli.data import inspect, pack
from cliplet.cli.distil import distil_store
from cliplet.cli.embed import embed
from cliplet.cli.evaluate import evaluate
from cliplet.cli.export import export
from cliplet.cli.hub import push
from cliplet.cli.library import duplicates, index, search
from cliplet.cli.models import import_model, interpolate
from cliplet.cli.options import parse
from cliplet.cli.serve import serve
from cliplet.cli.show import show
from cliplet.errors import INSTALL_TRAIN, ClipletError, ConfigError, nearest

FAILED, INTERRUPTED = 1, 130
# OpenVINO imports it with itself, does well without it, and then takes half as long to import.
OPENVINO_CONVERTER = "openvino.tools.ovc"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status. Errors that a user can put right end in two lines, not a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.modules.setdefault(OPENVINO_CONVERTER, None)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            try:
                return _run(words)
            finally:
                sys.stdout.flush()  # else a reader that has gone would be noticed only after main, as a traceback
    except ClipletError as error:
        interrupted = type(error).__name__ == "Interrupted"
        if interrupted and os.environ.get("RANK", "0") != "0":  # of several ranks that were, one says so
            return INTERRUPTED
        print(f"{'' if interrupted else 'error: '}{error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return INTERRUPTED if interrupted else FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, a pager or `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    finally:
        if sys.modules.get(OPENVINO_CONVERTER, True) is None:
            del sys.modules[OPENVINO_CONVERTER]


def _show_warning(message: Warning | str, *place: Any) -> None:
    """A warning as people want it: what, and not from which line of which file."""
    print(f"warning: {message}", file=sys.stderr)


def _run(words: list[str]) -> int:
    from cliplet import __version__

    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
    elif words[0] in ("-V", "--version"):
        print(f"cliplet {__version__}")
    elif words[0] not in VERBS:
        raise ConfigError(f"there is no command {words[0]!r}", nearest(words[0], VERBS))
    else:
        VERBS[words[0]](words[1:])
    return 0


def _overview() -> str:
    verbs = "\n".join(f"  {name:<13}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    return (
        "cliplet makes small CLIPs.\n\nusage: cliplet COMMAND ...\n\n"
        f"{verbs}\n\ncliplet COMMAND --help tells more of each."
    )


def demo(words: list[str]) -> None:
    """Render scenes, train on them, measure, search: the whole tool in a few minutes."""

    @dataclasses.dataclass
    class Options:
        output: Path = Path("runs/demo")
        """Run folder; an earlier demo there is replaced."""
        seed: int = 0
        """Of the scenes and of the training."""
        json: bool = False
        """Print JSON instead of a table (docs/json.md)."""

    from rich.console import Console

    from cliplet.demo import run_demo

    options: Options = parse(Options, "demo", words, demo.__doc__ or "")
    summary = run_demo(options.output, options.seed, Console(stderr=options.json))
    if options.json:
        print(summary.to_json())


def recipes(words: list[str]) -> None:
    """List the recipes, or print one as YAML that can be saved, edited and trained."""
    import tyro

    from cliplet.config import to_yaml
    from cliplet.console import recipe_list
    from cliplet.recipes import RECIPES, recipe

    @dataclasses.dataclass
    class Options:
        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
        """Print this one as YAML."""
        json: bool = False
        """Print JSON instead of text or YAML."""

    options: Options = parse(Options, "recipes", words, recipes.__doc__ or "")
    if options.name:
        config = recipe(options.name)
        print(json_module.dumps(config.model_dump(mode="json"), indent=2) if options.json else to_yaml(config).rstrip())
    elif options.json:
        listed = [one.as_dict() for one in RECIPES.values()]
        print(json_module.dumps({"format": "cliplet-recipes", "format_version": 1, "recipes": listed}, indent=2))
    else:
        print(recipe_list([one.as_dict() for one in RECIPES.values()]))
        print("\ncliplet recipes NAME prints one; cliplet train NAME --data.path DATA trains it.")


def train(words: list[str]) -> None:
    """Train a recipe: cliplet train RECIPE [--config FILE] [--resume] [--json] [--any.key VALUE ...]."""
    import tyro

    from cliplet.config import RunConfig

    command = "cliplet train " + shlex.join(words)
    file, words = _take_value(words, "--config")
    resume, profile, json = (flag in words for flag in ("--resume", "--profile-data", "--json"))
    words = [word for word in words if word not in ("--resume", "--profile-data", "--json")]
    name, words = (words[0], words[1:]) if words and not words[0].startswith("-") else ("", words)
    asks_help = not name and not file and any(word in ("-h", "--help") for word in words)
    config = RunConfig() if asks_help else _base_config(name, file)
    description = (
        f"{train.__doc__} Keys left out keep the recipe's values (cliplet recipes lists them); "
        "--config FILE lays a YAML file over the recipe; --resume goes on with an interrupted run; --profile-data "
        "trains nothing, but says in a minute where the time would go and what would help; --json prints the result "
        "as JSON and all else on standard error."
    )
    config = tyro.cli(
        RunConfig,
        default=config,
        args=words,
        prog=f"cliplet train {name or 'RECIPE'}",
        description=description,
        config=(tyro.conf.FlagConversionOff,),
    )

    from rich import print as rich_print
    from rich.console import Console

    from cliplet.console import recall_table
    from cliplet.results import TrainingSummary

    try:
        from cliplet.training import train as train_model
    except ModuleNotFoundError as error:
        raise ClipletError(
            f"training needs the package {error.name}, which is not installed",
            INSTALL_TRAIN,
        ) from None
    if profile:
        from cliplet.training.profile import profile_data

        profiled = profile_data(config, print)
        rich_print(profiled.table())
        print(f"bottleneck: {profiled.bottleneck}\n{profiled.advice}")
        return
    run = train_model(config, resume=resume, command=command, console=Console(stderr=json))
    if run.rank:
        return
    if json:
        summary = TrainingSummary(
            recipe=config.name,
            run=str(run.folder),
            model=str(run.model_folder),
            report=str(run.report),
            data=config.data.path,
            split=config.data.val_split,
            seed=config.train.seed,
            left_out=len(run.quarantine),
            metrics=run.evaluation.metrics,
        )
        print(summary.to_json())
        return
    rich_print(recall_table(run.evaluation.metrics, f"{run.model_folder} on split {config.data.val_split}"))
    print(f"model:  {run.model_folder}\nreport: {run.report}")


def _take_value(words: list[str], flag: str) -> tuple[str, list[str]]:
    """The value of `--flag VALUE` or `--flag=VALUE`, and the words without it."""
    for position, word in enumerate(words):
        if word == flag:
            if position + 1 == len(words):
                raise ConfigError(f"{flag} needs a value")
            return words[position + 1], words[:position] + words[position + 2 :]
        if word.startswith(f"{flag}="):
            return word[len(flag) + 1 :], words[:position] + words[position + 1 :]
    return "", words


def _base_config(name: str, file: str) -> Any:
    """The recipe with a configuration file laid over it; a file that names a recipe needs no other naming."""
    from cliplet.config import RunConfig, from_yaml
    from cliplet.recipes import RECIPES, recipe

    if not name and not file:
        raise ConfigError("say what to train: cliplet train RECIPE", nearest("", RECIPES))
    base = recipe(name) if name else RunConfig()
    if not file:
        return base
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the configuration cannot be read: {error}") from None
    config = from_yaml(text, file, base)
    if not name and config.name in RECIPES:
        config = from_yaml(text, file, recipe(config.name))
    return config


VERBS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "recipes": recipes,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "zero-shot": zero_shot,
    "few-shot": few_shot,
    "show": show,
    "embed": embed,
    "index": index,
    "search": search,
    "serve": serve,
    "duplicates": duplicates,
    "import": import_model,
    "interpolate": interpolate,
    "export": export,
    "push": push,
    "inspect": inspect,
    "pack": pack,
    "distil-store": distil_store,
}

if __name__ == "__main__":
    sys.exit(main())
