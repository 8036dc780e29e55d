"""The verb that puts a model where others can load it by its name: push."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

from cliplet.cli.options import parse


def push(words: list[str]) -> None:
    """Put a model on the Hugging Face hub, where cliplet loads it by its name."""
    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        """Model folder or run folder (its best model)."""
        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
        """Its name there, OWNER/NAME; created where it is not there yet."""
        private: bool = False
        """Let nobody else see it."""
        license: str = ""
        """What others may do with it, as the hub names licences: mit, apache-2.0, cc-by-4.0, other."""
        revision: str = ""
        """Branch to push to; by itself, the main one."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Options = parse(Options, "push", words, push.__doc__ or "")
    from cliplet.publish import push as push_model
    from cliplet.results import PushSummary

    pushed = push_model(
        options.model,
        options.name,
        private=options.private,
        license_id=options.license,
        revision=options.revision or None,
        say=lambda message: print(message, file=sys.stderr),
    )
    if options.json:
        summary = PushSummary(
            model=str(pushed.folder),
            name=options.name,
            url=pushed.url,
            commit=pushed.commit,
            revision=options.revision or None,
            files=pushed.files,
            left=pushed.left,
            removed=pushed.removed,
        )
        print(summary.to_json())
        return
    print(f"pushed:  {', '.join(pushed.files)}")
    if pushed.removed:
        print(f"removed: {', '.join(pushed.removed)}, of the model that was there")
    if pushed.left:
        print(f"left:    {', '.join(pushed.left)}, for these are no part of a model")
    source = f"{options.name}@{options.revision}" if options.revision else options.name
    print(f"model:   {pushed.url}\nuse it:  cliplet.load({source!r}), or {shlex.quote(source)} wherever MODEL is asked")
